"""What people and checks said of the answers, and the rows that the router learns from.

Verdicts are only ever added: who changes their mind adds another, and the last of one source counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, Select, select

from .rows import OutcomeRow
from .schema import attempts, outcomes, requests

OPINION = "confidence"  # the predictor's check: it says where to ask next, and nothing of what was given
ANSWERS = ("answer", "repair")  # the roles of attempts whose words a client may have been given
PEOPLE = ("audit", "review", "feedback")  # who outranks whom, and all of them the checks
AT_ONCE = 500  # requests whose attempts and verdicts are read together; well below SQLite's limit on bound parameters


@dataclass(frozen=True)
class Verdict:
    """What one source said of one attempt. `passed` None: a score alone, or a review that is still to come (`pending`)."""

    attempt_id: str
    source: str  # check | feedback | review | audit
    check: str
    passed: bool | None
    score: float | None
    pending: bool
    ts: float


@dataclass(frozen=True)
class TrainingRow:
    """One finished request with its attempts in their order (the columns of AttemptRow) and all verdicts, oldest first.

    What the prompt looked like is in `decision`, where the router put it: the ledger knows no prompt.
    """

    request_id: str
    ts: float
    task_class: str | None
    job: str | None
    key_id: str | None
    model_asked: str
    decision: dict[str, Any]
    attempts: tuple[dict[str, Any], ...] = ()
    verdicts: tuple[Verdict, ...] = field(default=())
    data_class: str | None = None

    def accepted(self, attempt_id: str) -> bool | None:
        """Whether the attempt was good, None if nobody can tell. People outrank checks: an audit counts before a review,
        a review before a client's feedback; of checks, all must have passed."""
        for source in PEOPLE:
            said = [
                v.passed for v in self.verdicts if (v.source, v.attempt_id) == (source, attempt_id) and v.passed is not None
            ]
            if said:
                return said[-1]
        checked = [
            v.passed
            for v in self.verdicts
            if (v.source, v.attempt_id) == ("check", attempt_id) and v.passed is not None and v.check != OPINION
        ]
        return all(checked) if checked else None


def feedback_row(
    engine: Engine,
    request_id: str,
    *,
    accepted: bool | None,
    score: float | None,
    comment: str,
    key_id: str | None,
    source: str,
    ts: float,
) -> OutcomeRow | None:
    """Somebody's verdict on what a client was given, or None where that key has no such request, or it was never tried.

    It is about the accepted attempt, or the last one where none was. A request made without a key is judged without one.
    """
    owner = select(requests.c.key_id).where(requests.c.id == request_id)
    tries = (
        select(attempts.c.id)
        .where(attempts.c.request_id == request_id, attempts.c.role.in_(ANSWERS))
        .order_by(attempts.c.accepted.desc(), attempts.c.n.desc())
        .limit(1)
    )
    with engine.connect() as connection:
        found = connection.execute(owner).one_or_none()
        if found is None or found.key_id != key_id:
            return None
        attempt_id = connection.execute(tries).scalar()
    return attempt_id and OutcomeRow(request_id, attempt_id, "", accepted, score, ts=ts, source=source, comment=comment)


def training_rows(engine: Engine, since: float = 0.0) -> Iterator[TrainingRow]:
    """The requests that ended and began at `since` or later, oldest first, judged or not. Memory is bounded."""
    after: tuple[float, str] = (since, "")
    while True:
        query = (
            select(requests)
            .where((requests.c.ts > after[0]) | ((requests.c.ts == after[0]) & (requests.c.id > after[1])))
            .where(requests.c.finished_ts.is_not(None))
            .order_by(requests.c.ts, requests.c.id)
            .limit(AT_ONCE)
        )
        with engine.connect() as connection:
            found = connection.execute(query).all()
            whole = _whole(connection, found)
        yield from whole
        if len(found) < AT_ONCE:
            return
        after = (found[-1].ts, found[-1].id)


def audited_rows(engine: Engine, since: float) -> Iterator[tuple[TrainingRow, bool]]:
    """The requests of which an audit has said yes or no since then, in the audits' order; the last word on each counts."""
    query = (
        select(outcomes.c.request_id, outcomes.c.passed)
        .where(outcomes.c.source == "audit", outcomes.c.passed.is_not(None), outcomes.c.ts >= since)
        .order_by(outcomes.c.ts)
    )
    with engine.connect() as connection:
        said = {row.request_id: bool(row.passed) for row in connection.execute(query)}
        names = list(said)
        for some in (names[i : i + AT_ONCE] for i in range(0, len(names), AT_ONCE)):
            rows = {
                r.request_id: r
                for r in _whole(connection, connection.execute(select(requests).where(requests.c.id.in_(some))).all())
            }
            yield from ((rows[name], said[name]) for name in some if name in rows)


def _whole(connection: Any, found: Sequence[Any]) -> list[TrainingRow]:
    """Rows of requests with their attempts and verdicts."""
    ids = [row.id for row in found]
    tried = _by_request(connection, select(attempts).where(attempts.c.request_id.in_(ids)).order_by(attempts.c.n))
    said = _by_request(connection, select(outcomes).where(outcomes.c.request_id.in_(ids)).order_by(outcomes.c.ts))
    return [
        TrainingRow(
            row.id,
            row.ts,
            row.task_class,
            row.job,
            row.key_id,
            row.model_asked,
            row.decision,
            tuple(tried.get(row.id, ())),
            tuple(Verdict(**{name: v[name] for name in Verdict.__dataclass_fields__}) for v in said.get(row.id, ())),
            row.data_class,
        )
        for row in found
    ]


def _by_request(connection: Any, query: Select[Any]) -> dict[str, list[dict[str, Any]]]:
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in connection.execute(query):
        grouped.setdefault(row.request_id, []).append(dict(row._mapping))
    return grouped
