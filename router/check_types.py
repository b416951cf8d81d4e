"""What a check is, what it judges and what it says; and the clock that the checks share."""

import time
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from ..wire.chat import ChatRequest, ToolCall, ToolCallDelta

CHECKS_S = 2.0  # for all checks of all choices, sandboxes and judges aside: a schema of a few lines can branch for years
MAX_EVIDENCE = 300  # characters

Check = Mapping[str, Any]
deadline: ContextVar[float] = ContextVar("check_deadline")  # of the running checks, monotonic


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check says of an answer; `evidence` is why, written for the next model to read.

    `cost_usd` is what asking cost, of a judge that is a model. `pending`: somebody will decide later; until then it has passed.
    """

    check: str
    passed: bool
    evidence: str = ""
    score: float | None = None
    cost_usd: float = 0.0
    pending: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What is judged. `request` is what was asked, with its tools and its context, as the client sent it."""

    text: str
    finish_reason: str
    calls: tuple[ToolCall, ...] = ()
    request: ChatRequest | None = None

    @property
    def has_tool_calls(self) -> bool:
        """Whether it calls a tool."""
        return bool(self.calls)


def calls_of(deltas: Iterable[ToolCallDelta]) -> tuple[ToolCall, ...]:
    """The calls that a choice's deltas add up to, in the order of their numbers."""
    calls: dict[int, ToolCall] = {}
    for delta in deltas:
        had = calls.get(delta.call, ToolCall("", "", ""))
        calls[delta.call] = ToolCall(delta.id or had.id, delta.name or had.name, had.arguments + delta.arguments)
    return tuple(calls[number] for number in sorted(calls))


def time_left() -> float:
    """Seconds until the running checks must end. Raises TimeoutError if there are none."""
    left = deadline.get() - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
