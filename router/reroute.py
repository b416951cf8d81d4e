"""Recorded requests under another policy: how each would go, as far as the records can say.

Where the policy tries the same places in the same order, it goes as it went. Else it is followed place by place for as long as
the books know what came of asking that place in that situation; where they don't, the task is unknown from there on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..ledger.outcomes import ANSWERS, TrainingRow
from ..ledger.whatif import AS_MANY, Attempt, Course, as_recorded
from ..wire.chat import ChatRequest, Extras
from .placement import Rule
from .policy import Denied, Policy, Rung, judge
from .shadow import drawn

# Gates that look at words or abilities: without the text, what they said then of a place is what they say.
OF_THE_TEXT = ("vision", "tools", "capability", "context")
AS_THEN = ("context", "ready")  # and these in any case: tokens are counted, and keys given, at a server's side alone
SUPPLIERS_FIRST = ("stall", "queue", "predictor")


@dataclass(frozen=True)
class Places:
    """What a policy may name. `rungs`: the suppliers' models; `local`: the served models, of which the first is `local`."""

    rungs: Mapping[str, Rung]
    local: Sequence[str]


class Unknown(Exception):
    """The records can't say; the message says what."""


def course(row: TrainingRow, policy: Policy, places: Places, asked: ChatRequest | None) -> Course:
    """The course of a request under `policy`; `asked` where its text was kept."""
    mode = row.decision.get("mode")
    if mode == "local" or not row.decision.get("rungs"):
        return as_recorded(row)
    then = tuple(r["name"] for r in row.decision["rungs"] if r["allowed"])
    request = asked or _bare(row)
    try:
        if mode == "supplier":
            return _named(row, policy, places, request)
        now = _order(row, policy, places, request, known=asked is not None)
        return _followed(row, now, _planned(row, then), policy)
    except Unknown as unknown:
        return Course((), None, str(unknown))


def _bare(row: TrainingRow) -> ChatRequest:
    """What the gates can know of a request whose text was not kept."""
    forbidden = any(r["gate"] == "request" for r in row.decision["rungs"])
    return ChatRequest(row.model_asked, extras=Extras(allow_suppliers=not forbidden, data_class=row.data_class or ""))


def _named(row: TrainingRow, policy: Policy, places: Places, request: ChatRequest) -> Course:
    """A request for one supplier's model."""
    name = row.decision["rungs"][0]["name"]
    if not _passes(row, name, policy, places, request, known=False):
        return Course((), False)
    if row.decision["rungs"][0]["allowed"]:
        return as_recorded(row)
    raise Unknown(f"what {name} would have answered: it was not asked")


def _order(row: TrainingRow, policy: Policy, places: Places, request: ChatRequest, *, known: bool) -> tuple[str, ...]:
    """The places in the order in which they would be tried."""
    first = row.decision["rungs"][0]["name"]  # of `auto`: the served model
    rule = _rule(row, policy, request, known=known)
    wanted = dict.fromkeys([first, *(_resolved(name, places, first) for name in policy.ladder)])
    if rule is not None:
        wanted |= {_resolved(rule.place, places, first): None}
    allowed = tuple(name for name in wanted if _passes(row, name, policy, places, request, known=known))
    if rule is not None:
        chosen = _resolved(rule.place, places, first)
        if chosen in allowed:
            return (chosen,) if rule.only else (chosen, *(name for name in allowed if name != chosen))
        if rule.only:
            return ()
    return _planned(row, allowed, policy)


def _rule(row: TrainingRow, policy: Policy, request: ChatRequest, *, known: bool) -> Rule | None:
    """The rule that the request falls under. Raises Unknown where that depends on words that were not kept."""
    for rule in policy.rules:
        if known:
            if rule.holds(request):
                return rule
        elif rule.task and rule.task != (row.task_class or ""):
            continue
        elif Rule(rule.name, rule.place, rule.only, rule.task) != rule:
            raise Unknown(f"whether the rule {rule.name} holds: it looks at the text, which was not kept")
        else:
            return rule
    return None


def _resolved(name: str, places: Places, first: str) -> str:
    return name if name in places.local or name in places.rungs else first


def _passes(row: TrainingRow, name: str, policy: Policy, places: Places, request: ChatRequest, *, known: bool) -> bool:
    """Whether the gates let the request go there."""
    then = next((r for r in row.decision["rungs"] if r["name"] == name), None)
    if then is not None and not then["allowed"] and (then["gate"] in AS_THEN or (not known and then["gate"] in OF_THE_TEXT)):
        return False
    rung = places.rungs.get(name)
    if rung is None:
        if "/" in name and name not in places.local:
            raise Unknown(f"whether {name} may be asked: no supplier of that name is configured")
        return True  # a local model
    return not isinstance(judge(request, policy, rung), Denied)


def _planned(row: TrainingRow, allowed: tuple[str, ...], policy: Policy | None = None) -> tuple[str, ...]:
    """`allowed` in the order that the plan of then gave it: forecasts, stalls and queues are what they were. `policy`: the one
    to be tried, which may be more patient with a queue."""
    notes: Sequence[Mapping[str, Any]] = row.decision.get("notes", ())
    suppliers = tuple(name for name in allowed if "/" in name)
    others = tuple(name for name in allowed if "/" not in name)
    for note in notes:
        numbers = note["numbers"]
        if policy is None and note["by"] == "rule":
            place = note["why"].rpartition(": ")[2]
            chosen = next((n for n in allowed if n == place.removesuffix(" only")), others[0] if others else "")
            return (chosen,) if place.endswith(" only") else (chosen, *(n for n in allowed if n != chosen))
        if note["by"] == "latch" and (policy is None or policy.latch):
            held = next((n for n in allowed if note["why"].startswith(f"{n} ")), None)
            return (held, *(n for n in allowed if n != held)) if held else allowed
        if note["by"] not in SUPPLIERS_FIRST or (note["by"] == "predictor" and numbers["gap"] <= numbers["threshold"]):
            continue
        if note["by"] == "queue" and policy is not None and not 0 < policy.spill_waiting <= numbers["waiting"]:
            continue
        return (*suppliers, *others)
    return allowed


def _followed(row: TrainingRow, now: tuple[str, ...], then: tuple[str, ...], policy: Policy) -> Course:
    tried = [a for a in row.attempts if a["role"] in ANSWERS]
    same = len(tuple(dict.fromkeys(a["model"] for a in tried)))  # as many places of `then` were tried
    repaired = sum(a["role"] == "repair" for a in tried)
    if now[: max(same, 1)] == then[: max(same, 1)] and (now == then or _ended(row, tried)):
        if len(tried) > policy.max_attempts:
            raise Unknown(f"what {policy.max_attempts} tries would have come to: {len(tried)} were made")
        if repaired > policy.repairs * max(same, 1):
            raise Unknown("what would have come of it without the repairs that were tried")
        return _as_it_went(row, policy, now)
    used: list[Attempt] = []
    for i, name in enumerate(now):
        here = _asked_alone(row, name) if i == 0 else [a for a in tried if a["model"] == name] if now[:i] == then[:i] else []
        if not here:
            return _never(row, name, used, alone=i == 0)
        used += _with_judges(row, here)
        verdict = row.accepted(here[-1]["id"])
        if verdict is None and here[-1]["role"] == "shadow" and here[-1]["error"] is None:
            return Course(tuple(used), None, f"whether {name}'s answer would have been accepted: nobody judged it")
        if verdict or (verdict is None and here[-1]["accepted"]):
            return Course(tuple(used), True, answered=name)
    return Course(tuple(used), False)


def _as_it_went(row: TrainingRow, policy: Policy, now: tuple[str, ...]) -> Course:
    """A shadow is asked, of a place that may be, where the request's lot falls into the policy's share."""
    spent = sum(a["retail_usd"] or 0.0 for a in row.attempts if a["role"] != "shadow")
    if 0 < policy.max_usd < spent:
        raise Unknown(f"what {policy.max_usd:g} dollars would have come to: it cost more")
    went = as_recorded(row)
    shadows = now if drawn(row.request_id) < policy.shadow else ()
    return replace(went, attempts=tuple(a for a in went.attempts if a["role"] != "shadow" or a["model"] in shadows))


def _ended(row: TrainingRow, tried: Sequence[Attempt]) -> bool:
    """Whether the places that were tried were enough: what comes after them in the order was not asked for."""
    return bool(tried) and tried[-1]["accepted"]


def _asked_alone(row: TrainingRow, name: str) -> list[Attempt]:
    """The attempt there that was told nothing of another's failure: the first of all, or a shadow."""
    first = next((a for a in row.attempts if a["role"] in ANSWERS), None)
    if first is not None and first["model"] == name:
        return [a for a in row.attempts if a["role"] in ANSWERS and a["model"] == name]
    return [a for a in row.attempts if a["role"] == "shadow" and a["model"] == name]


def _with_judges(row: TrainingRow, here: Sequence[Attempt]) -> list[Attempt]:
    """These attempts, each with the judges that were asked about it."""
    found, of_mine = [], False
    for attempt in row.attempts:
        if attempt["role"] != "judge":
            of_mine = any(attempt is mine for mine in here)
        if of_mine:
            found.append(attempt)
    return found


def _never(row: TrainingRow, name: str, used: Sequence[Attempt], *, alone: bool) -> Course:
    """It would have gone on at a place that was never asked, or only after another had failed."""
    answered = [a for a in row.attempts if a["role"] != "judge" and (a["prompt_tokens"] or a["completion_tokens"])]
    # Suppliers' models resemble each other more than they do a local one.
    model = next((a for a in answered if (a["backend"] == "local") != ("/" in name)), answered[0] if answered else None)
    asked = any(a["model"] == name for a in row.attempts)
    why = f"what {name} would have answered: it was asked only after another's failed answer" if asked and alone else (
        f"what {name} would have answered: it was not asked")  # fmt: skip
    if model is None:
        return Course(tuple(used), None, why)
    backend = name.partition("/")[0] if "/" in name else "local"
    supposed = {**model, "model": name, "backend": backend, "retail_usd": None, "internal_usd": None, "role": "answer"}
    if backend == "local" and model["backend"] != "local":
        supposed["device_seconds"] = None
    return Course((*used, supposed), None, why, (AS_MANY.format(name),))
