"""What the books say: sums per route and model, and one request whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from sqlalchemy import Engine, Row, Table, func, select

from .outcomes import ANSWERS
from .schema import attempts, egress, outcomes, requests


@dataclass(frozen=True)
class Line:
    """All requests of one route that asked for one model.

    Tokens and dollars are sums over *all* attempts, failed ones too: that is what the answers cost. The medians (seconds) are
    of the accepted attempts. `retail_usd` is None where no attempt had a price; `unpriced` counts the attempts without one.
    `escalated` is the share of requests that a second backend had to answer.
    """

    route: str
    model: str
    requests: int
    attempts: int
    accepted: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    first_token_s: float | None
    duration_s: float | None
    retail_usd: float | None
    unpriced: int
    escalated: float


@dataclass(frozen=True)
class Report:
    """`lines` by falling number of requests, and their `total` (route and model are empty there)."""

    since: float
    lines: tuple[Line, ...]
    total: Line


@dataclass
class _Tally:
    """Sums for one group while its attempts are read."""

    backends: dict[str, set[str]] = field(default_factory=dict)  # request id -> backends tried
    attempts: int = 0
    accepted: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    first_token_s: list[float] = field(default_factory=list)
    duration_s: list[float] = field(default_factory=list)
    prices: list[float] = field(default_factory=list)

    def add(self, row: Row[Any]) -> None:
        tried = self.backends.setdefault(row.request_id, set())
        if row.attempt_id is None:  # nothing was tried: refused by a gate, or still waiting
            return
        if row.role in ANSWERS:  # a judge or a shadow is no second one that had to answer
            tried.add(row.backend)
        self.attempts += 1
        self.accepted += row.accepted
        self.prompt_tokens += row.prompt_tokens
        self.completion_tokens += row.completion_tokens
        self.cached_tokens += row.cached_tokens
        if row.retail_usd is not None:
            self.prices.append(row.retail_usd)
        if row.accepted:
            self.first_token_s += [row.first_token_s] if row.first_token_s is not None else []
            self.duration_s += [row.duration_s] if row.duration_s is not None else []

    def line(self, route: str, model: str) -> Line:
        escalated = sum(len(tried) > 1 for tried in self.backends.values())
        return Line(
            route=route,
            model=model,
            requests=len(self.backends),
            attempts=self.attempts,
            accepted=self.accepted,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cached_tokens=self.cached_tokens,
            first_token_s=median(self.first_token_s) if self.first_token_s else None,
            duration_s=median(self.duration_s) if self.duration_s else None,
            retail_usd=sum(self.prices) if self.prices else None,
            unpriced=self.attempts - len(self.prices),
            escalated=escalated / len(self.backends) if self.backends else 0.0,
        )


def report(engine: Engine, since: float = 0.0) -> Report:
    """Sum up the requests that began at `since` (seconds since the epoch) or later."""
    groups: dict[tuple[str, str], _Tally] = {}
    total = _Tally()
    for row in _rows(engine, since):
        groups.setdefault((row.route, row.model_asked), _Tally()).add(row)
        total.add(row)
    lines = sorted(
        (tally.line(*key) for key, tally in groups.items()), key=lambda line: (-line.requests, line.route, line.model)
    )
    return Report(since, tuple(lines), total.line("", ""))


def _rows(engine: Engine, since: float) -> Iterable[Row[Any]]:
    columns = [c for c in attempts.c if c.name not in ("id", "request_id", "model")]
    query = (
        select(requests.c.id.label("request_id"), requests.c.route, requests.c.model_asked)
        .add_columns(attempts.c.id.label("attempt_id"), *columns)
        .join_from(requests, attempts, attempts.c.request_id == requests.c.id, isouter=True)
        .where(requests.c.ts >= since)
    )
    with engine.connect() as connection:
        yield from connection.execution_options(stream_results=True).execute(query)


def began(engine: Engine) -> float | None:
    """When the first request came, in seconds since the epoch; None: none did."""
    with engine.connect() as connection:
        return connection.execute(select(func.min(requests.c.ts))).scalar()


def request(engine: Engine, request_id: str) -> dict[str, Any] | None:
    """The request's columns plus `attempts`, `outcomes` and `egress` (lists of their columns), or None if unknown."""
    with engine.connect() as connection:

        def rows(table: Table, order: str) -> list[dict[str, Any]]:
            query = select(table).where(table.c.request_id == request_id).order_by(table.c[order])
            return [dict(row._mapping) for row in connection.execute(query)]

        found = connection.execute(select(requests).where(requests.c.id == request_id)).one_or_none()
        if found is None:
            return None
        return {
            **found._mapping,
            "attempts": rows(attempts, "n"),
            "outcomes": [{k: v for k, v in row.items() if k != "id"} for row in rows(outcomes, "ts")],
            "egress": rows(egress, "ts"),
        }
