"""The recorded traffic at other prices, on another machine or with another supplier's model: what it cost, and would cost then.

What the records can't say is counted under its name and never guessed: a task of which nobody can know whether it would have
been accepted is neither, and the cost for each accepted task is given for both cases.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from .machine_cost import request_usd
from .outcomes import ANSWERS, TrainingRow
from .retail import Overrides, Tokens, quote
from .tasks import PerAccepted, Task, per_accepted

Attempt = Mapping[str, Any]  # the columns of an AttemptRow
AS_MANY = "answers by {} are priced by the tokens that the recorded model took"


@dataclass(frozen=True)
class Terms:
    """What is to be supposed. `usd_per_hour` None: local work costs what the books say; `instead`: the supplier/model that
    makes all suppliers' answers; `providers`: a supplier's name in the price data, where that is another."""

    own: Overrides | None = None
    usd_per_hour: float | None = None
    instead: str = ""
    providers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Course:
    """How a request goes: the attempts that are made, as far as they are known, and whether an answer is accepted in the end.
    `accepted` None: the records can't say, and `unknown` why not; `assumed`: what is supposed of a cost, with how often."""

    attempts: tuple[Attempt, ...]
    accepted: bool | None
    unknown: str = ""
    assumed: tuple[str, ...] = ()
    answered: str = ""  # the model of the accepted answer


@dataclass(frozen=True)
class Side:
    """One of the two bills. `supplier_usd` and `local_usd` sum what has a price; `unpriced` counts the attempts that have none.
    `best` and `worst`: dollars for each accepted task if all tasks of which it is not known were accepted, and if none was."""

    tasks: int
    attempts: int
    accepted: int
    unknown: int
    supplier_usd: float
    local_usd: float
    unpriced: int
    best: PerAccepted | None
    worst: PerAccepted | None
    routes: dict[str, int]


@dataclass(frozen=True)
class WhatIf:
    """Both bills, what can't be known of the second, and what was supposed for it; each with how often."""

    recorded: Side
    then: Side
    unknown: dict[str, int]
    assumed: dict[str, int]


def as_recorded(row: TrainingRow) -> Course:
    """What happened. It was accepted if people, or else the checks, said so; where nobody judged, the client took it."""
    taken = next((a for a in row.attempts if a["accepted"] and a["role"] in ANSWERS), None)
    good = taken is not None and row.accepted(taken["id"]) is not False
    return Course(row.attempts, good, answered=taken["model"] if taken and good else "")


def bought_instead(row: TrainingRow, course: Course, model: str) -> Course:
    """The same with every supplier's answer made by `model` ("supplier/name")."""
    used: list[Attempt] = []
    accepted, unknown, answered, assumed = course.accepted, course.unknown, course.answered, list(course.assumed)
    for attempt in course.attempts:
        if attempt["backend"] == "local" or attempt["role"] not in ANSWERS or attempt["model"] == model:
            used.append(attempt)
            continue
        theirs = next((a for a in row.attempts if a["model"] == model and a["error"] is None), None)
        if theirs is not None and row.accepted(theirs["id"]) is not None:  # a shadow that was judged
            used.append(theirs)
            accepted, answered = row.accepted(theirs["id"]), model
            continue
        used.append({**attempt, "model": model, "backend": model.partition("/")[0], "retail_usd": None})
        assumed.append(AS_MANY.format(model))
        accepted, unknown = None, f"whether {model}, which was not asked, would have been accepted"
    return Course(tuple(used), accepted, unknown, tuple(assumed), answered if accepted else "")


def recorded_usd(attempt: Attempt, usd_per_hour: float | None = None) -> float | None:
    """What the books say of an attempt; local work that they give no price costs its device time."""
    for name in ("retail_usd", "internal_usd"):
        if attempt[name] is not None:
            return float(attempt[name])
    seconds = attempt["device_seconds"]
    if attempt["backend"] != "local" or seconds is None or usd_per_hour is None:
        return None
    return request_usd(seconds, usd_per_hour)


def supposed_usd(attempt: Attempt, terms: Terms) -> float | None:
    """The same under other terms; None: it has no price there."""
    if attempt["backend"] == "local":
        if terms.usd_per_hour is None:
            return recorded_usd(attempt)
        seconds = attempt["device_seconds"]
        return None if seconds is None else request_usd(seconds, terms.usd_per_hour)
    tokens = Tokens(
        attempt["prompt_tokens"], attempt["completion_tokens"], attempt["cached_tokens"], attempt["cache_write_tokens"]
    )
    if not tokens.prompt and not tokens.completion:  # it never answered: nothing, or nobody knows what, was asked for
        return attempt["retail_usd"]
    supplier = attempt["backend"]
    provider, model = terms.providers.get(supplier, supplier), attempt["model"].removeprefix(f"{supplier}/")
    own = {**(terms.own or {})}
    if (named := f"{supplier}/{model}") in own:  # an operator's file may call it as clients do
        own.setdefault(f"{provider}/{model}", own[named])
    found = quote(provider, model, tokens, datetime.fromtimestamp(attempt["started_ts"], UTC), own)
    return None if found is None else float(found.usd)


def compare(pairs: Iterable[tuple[TrainingRow, Course]], terms: Terms, seed: int = 0) -> WhatIf:
    """Every request with the course that it would take. Local work without a recorded cost has that of `terms` on both sides.

    Money is in US dollars; the intervals are `tasks.per_accepted`'s."""
    then, now = _Sum(), _Sum()
    unknown, assumed = Counter[str](), Counter[str]()
    for row, course in pairs:
        if terms.instead:
            course = bought_instead(row, course, terms.instead)
        was = as_recorded(row)
        now.add(row.request_id, was, [recorded_usd(a, terms.usd_per_hour) for a in was.attempts])
        then.add(row.request_id, course, [supposed_usd(a, terms) for a in course.attempts])
        unknown.update([course.unknown] if course.unknown else [])
        assumed.update(course.assumed)
        if terms.usd_per_hour is not None and any(a["backend"] == "local" and a["internal_usd"] is None for a in was.attempts):
            assumed["local work of which the books say no cost is priced by the hardware profile on both sides"] += 1
    return WhatIf(now.side(seed), then.side(seed), dict(unknown.most_common()), dict(assumed.most_common()))


class _Sum:
    """One side while it is added up. Money is summed exactly."""

    def __init__(self) -> None:
        self.courses: list[tuple[str, Course, float | None]] = []
        self.money = {"supplier": Decimal(0), "local": Decimal(0)}
        self.attempts = self.unpriced = 0
        self.routes: Counter[str] = Counter()

    def add(self, request_id: str, course: Course, costs: Sequence[float | None]) -> None:
        for attempt, cost in zip(course.attempts, costs, strict=True):
            self.attempts += 1
            self.unpriced += cost is None
            self.money["local" if attempt["backend"] == "local" else "supplier"] += Decimal(str(cost or 0.0))
        known = [cost for cost in costs if cost is not None]
        self.courses.append((request_id, course, sum(known) if len(known) == len(costs) else None))
        self.routes["not known" if course.accepted is None else course.answered or "nobody"] += 1

    def _tasks(self, unknown_too: bool) -> list[Task]:
        return [Task(id, "", usd, None, unknown_too if c.accepted is None else c.accepted) for id, c, usd in self.courses]

    def side(self, seed: int) -> Side:
        best, worst = (per_accepted(self._tasks(unknown_too), seed) for unknown_too in (True, False))
        return Side(
            len(self.courses),
            self.attempts,
            sum(c.accepted is True for _, c, _ in self.courses),
            sum(c.accepted is None for _, c, _ in self.courses),
            float(self.money["supplier"]),
            float(self.money["local"]),
            self.unpriced,
            best[0] if best else None,
            worst[0] if worst else None,
            dict(self.routes.most_common()),
        )
