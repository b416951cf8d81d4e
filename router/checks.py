"""The definition of done, as data, and its verdicts.

A check is an object with a `type` and the fields that check_fields.py names:

    json_schema {schema}, json_object, regex {pattern}, tool_call {name?, required?}, non_empty, finish_reason {allowed?}
    contains {values, any?}, equals {value}, number {value, tolerance?}, citation {min?, style?: quotes | numbers}
    python {tests?, timeout_s?}, command {argv, timeout_s?}     where the machine's owner permits it, in a sandbox
    judge {rubric, model?, pass_score?}, human                  another model says; somebody will say later

Everything in one may come from a stranger: the checks share a time limit, and what runs a program has its own.
"""

import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar

from ..wire.chat import ChatRequest
from ..wire.errors import BadRequest
from . import check_code, check_schema, check_text
from .check_fields import validate
from .check_types import CHECKS_S, MAX_EVIDENCE, Answer, Check, Verdict, calls_of, deadline
from .sandbox import Permissions

__all__ = ["CHECKS_S", "Answer", "Check", "Judge", "Permissions", "Verdict", "calls_of", "checks_of", "run"]

MAX_CHECKS = 16  # that a request brings
Judge = Callable[[Check, Answer], Verdict]
_aside: ContextVar[tuple[float, float]] = ContextVar("aside", default=(0.0, 0.0))  # seconds not counted against a deadline

QUICK: dict[str, Callable[[Check, Answer], str]] = {
    "json_schema": check_schema.json_schema,
    "json_object": check_schema.json_object,
    "regex": check_schema.pattern,
    "tool_call": check_schema.tool_call,
    "non_empty": check_schema.non_empty,
    "finish_reason": check_schema.finish_reason,
    "contains": check_text.contains,
    "equals": check_text.equals,
    "number": check_text.number,
    "citation": check_text.citation,
}
SANDBOXED: dict[str, Callable[[Check, Answer], str]] = {"python": check_code.python, "command": check_code.command}


def checks_of(request: ChatRequest, permissions: Permissions = Permissions()) -> tuple[Check, ...]:
    """The request's own checks and those that its response_format implies; () if there are none. Raises BadRequest."""
    implied: list[Check] = []
    if request.response_format.kind == "json_schema":
        implied = [{"type": "json_schema", "schema": request.response_format.schema or {}}]
    elif request.response_format.kind == "json_object":
        implied = [{"type": "json_object"}]
    if len(request.extras.checks) > MAX_CHECKS:
        raise BadRequest(f"A request may bring at most {MAX_CHECKS} checks.", param="baseload.checks")
    asked = [*implied, *request.extras.checks]
    for check in asked:
        validate(check, request, permissions)
    if not asked:
        return ()
    # Whatever else is promised, an answer that was cut off or is empty is not done.
    usual = [{"type": kind} for kind in ("finish_reason", "non_empty") if kind not in {c["type"] for c in asked}]
    return (*usual, *asked)


def run(checks: Sequence[Check], answer: Answer, until: float | None = None, judges: Judge | None = None) -> list[Verdict]:
    """Every check's verdict. Never raises for what a check or an answer holds.

    What has not ended by `until` (monotonic seconds; CHECKS_S from now if not given) has failed. Sandboxed programs and judges
    come last and have their own time, which isn't counted: who judges several answers `until` the same moment is not late by
    it. `judges` is asked for the verdict of a judge. Blocks.
    """
    until = time.monotonic() + CHECKS_S if until is None else until
    aside = _aside.get()[1] if _aside.get()[0] == until else 0.0
    deadline.set(until + aside)
    verdicts = {i: _run(check, answer, judges) for i, check in enumerate(checks) if check.get("type") in QUICK}
    begun = time.monotonic()
    verdicts |= {i: _run(check, answer, judges) for i, check in enumerate(checks) if i not in verdicts}
    _aside.set((until, aside + time.monotonic() - begun))
    return [verdicts[i] for i in range(len(checks))]


def _run(check: Check, answer: Answer, judges: Judge | None) -> Verdict:
    kind = str(check.get("type"))
    try:
        if kind == "human":
            return Verdict(kind, True, "somebody will look at it", pending=True)
        if kind == "judge" and judges is not None:
            return judges(check, answer)
        evidence = "no judge is at hand" if kind == "judge" else (QUICK | SANDBOXED)[kind](check, answer)
    except TimeoutError:
        evidence = "the check took too long"
    except Exception as error:  # a schema, a pattern or an argument that nobody has thought of fails its own answer only
        evidence = f"the check could not be run ({type(error).__name__})"
    return Verdict(kind, not evidence, evidence[:MAX_EVIDENCE])
