"""What happened in one stretch of time, summed by the database: who asked, who answered, what it took and cost.

Of a stretch the newest `most` requests are read, so that no question to it grows with the ledger; the answer says if there were
more. Whether a task was accepted is told as in `outcomes`: an audit's word before a review's, that before a client's feedback,
that before the checks'; where nobody judged, the client took it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import CTE, ColumnElement, Engine, Integer, and_, case, cast, func, literal, or_, select

from .outcomes import ANSWERS, OPINION, PEOPLE
from .schema import attempts, outcomes, requests

MOST = 200_000  # requests of one stretch
GROUPS = 1000  # of keys and places in it, those with most requests


@dataclass(frozen=True, slots=True)
class Group:
    """The requests of one key that one backend answered (`answered` is empty where none did).

    Tokens, dollars and joules (this machine's) are of all attempts, failed ones too; a sum is None where no attempt has that
    figure, and the counts beside it (`*_unknown`) say how many that are over have none. `kept_*` are the tokens of accepted
    local answers: what a supplier would have been paid for.
    """

    answered: str
    key_id: str
    requests: int
    accepted: int  # tasks
    failed: int  # requests that ended in an error
    attempts: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    supplier_usd: float | None
    supplier_unknown: int
    local_usd: float | None
    local_unknown: int
    joules: float | None
    joules_unknown: int
    kept: int
    kept_prompt_tokens: int
    kept_completion_tokens: int
    kept_cached_tokens: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """The requests that began at `start` or later and before `end` (seconds since the epoch), in groups."""

    start: float
    end: float
    groups: tuple[Group, ...]
    cut: bool  # there were more requests, or more groups, than are summed here


def stretch(engine: Engine, start: float, end: float, most: int = MOST) -> Stretch:
    """Sum up a stretch of time."""
    within = (
        select(requests.c.id, requests.c.key_id, requests.c.status)
        .where(requests.c.ts >= start, requests.c.ts < end)
        .order_by(requests.c.ts.desc())
        .limit(most)
        .cte("within")
    )
    each = _each(within)
    sums = [func.sum(each.c[name]).label(name) for name in Group.__slots__ if name in each.c and name not in _WHO]
    query = (
        select(each.c.answered, each.c.key_id, func.count().label("requests"), *sums)
        .group_by(each.c.answered, each.c.key_id)
        .order_by(func.count().desc())
        .limit(GROUPS)
    )
    with engine.connect() as connection:
        rows = connection.execute(query).mappings().all()
    groups = tuple(Group(**{name: _plain(row[name], name) for name in Group.__slots__}) for row in rows)
    return Stretch(start, end, groups, len(rows) == GROUPS or sum(group.requests for group in groups) >= most)


_WHO = ("answered", "key_id")
_MAYBE = ("supplier_usd", "local_usd", "joules")


def _plain(value: Any, name: str) -> Any:
    """What the database says, in this page's words: no name is an empty one, no figure stays None, sums are plain numbers."""
    if name in _WHO:
        return value or ""
    if name in _MAYBE:
        return None if value is None else float(value)
    return int(value or 0)  # PostgreSQL's sums are Decimals


def _each(within: CTE) -> CTE:
    """One row for each request: who answered it, and the sums over its attempts."""
    a, refused = attempts.c, _refused(within)
    local, over = a.backend == "local", within.c.status != "running"  # what still runs will have its figures at its end
    answer = and_(a.accepted.is_(True), a.role.in_(ANSWERS))
    kept = and_(answer, local)

    def total(what: ColumnElement[Any], when: ColumnElement[bool]) -> ColumnElement[Any]:
        return func.sum(case((when, what), else_=None))

    def count(when: ColumnElement[bool]) -> ColumnElement[int]:
        return func.sum(case((when, 1), else_=0))

    return (
        select(
            within.c.id,
            func.max(case((answer, a.backend), else_=None)).label("answered"),
            within.c.key_id,
            func.max(case((and_(answer, refused.c.attempt_id.is_(None)), 1), else_=0)).label("accepted"),
            func.max(case((within.c.status == "failed", 1), else_=0)).label("failed"),
            func.count(a.id).label("attempts"),
            func.coalesce(func.sum(a.prompt_tokens), 0).label("prompt_tokens"),
            func.coalesce(func.sum(a.completion_tokens), 0).label("completion_tokens"),
            func.coalesce(func.sum(a.cached_tokens), 0).label("cached_tokens"),
            total(a.retail_usd, ~local).label("supplier_usd"),
            count(and_(over, ~local, a.retail_usd.is_(None))).label("supplier_unknown"),
            total(a.internal_usd, local).label("local_usd"),
            count(and_(over, local, a.internal_usd.is_(None))).label("local_unknown"),
            total(a.energy_joules, local).label("joules"),
            count(and_(over, local, a.energy_joules.is_(None))).label("joules_unknown"),
            count(kept).label("kept"),
            total(a.prompt_tokens, kept).label("kept_prompt_tokens"),
            total(a.completion_tokens, kept).label("kept_completion_tokens"),
            total(a.cached_tokens, kept).label("kept_cached_tokens"),
        )
        .select_from(within)
        .join(attempts, a.request_id == within.c.id, isouter=True)
        .join(refused, refused.c.attempt_id == a.id, isouter=True)
        .group_by(within.c.id, within.c.key_id)
        .cte("each")
    )


def _refused(within: CTE) -> CTE:
    """The attempts of which the last word of whoever ranks highest is no."""
    o = outcomes.c
    rank = case(*((o.source == source, n) for n, source in enumerate(PEOPLE)), else_=len(PEOPLE))
    passed = cast(o.passed, Integer)
    # Of people the last word counts; of checks one that failed, which therefore stands first.
    said = (
        select(
            o.attempt_id,
            passed.label("passed"),
            func.row_number()
            .over(
                partition_by=o.attempt_id, order_by=(rank, case((o.source == "check", passed), else_=literal(0)), o.ts.desc())
            )
            .label("place"),
        )
        .join(within, within.c.id == o.request_id)
        .where(o.passed.is_not(None), or_((o.source == "check") & (o.check != OPINION), o.source.in_(PEOPLE)))
        .cte("said")
    )
    return select(said.c.attempt_id).where(said.c.place == 1, said.c.passed == 0).cte("refused")
