"""Tool calls that come interleaved, set in turn: for protocols whose stream has one block open at a time."""

import json
from collections.abc import Sequence

from .chat import Event, Extension, Failure, Finish, ReasoningDelta, TextDelta, ToolCallDelta

HELD = (TextDelta, ReasoningDelta, ToolCallDelta, Extension)


class CallsInTurn:
    """Puts the pieces of each call together, as late as must be: what comes amid a call waits until its arguments are whole,
    or for the answer's end. A call whose pieces come one after the other streams as it comes."""

    def __init__(self) -> None:
        self._open: int | None = None  # the call whose pieces go out now
        self._said: list[str] = []
        self._held: list[Event] = []

    def feed(self, event: Event) -> Sequence[Event]:
        """The events to write now, `event` among them or not."""
        if self._open is None and not isinstance(event, ToolCallDelta):
            return (event,)
        if isinstance(event, Failure):
            return (event,)
        if isinstance(event, Finish):
            return (*self._drain(all_=True), event)
        if not isinstance(event, HELD):
            return (event,)
        if isinstance(event, ToolCallDelta) and event.call == self._open:
            self._said.append(event.arguments)
            # Only the last brace can make it whole.
            return (event, *self._drain()) if self._held and "}" in event.arguments else (event,)
        self._held.append(event)
        return self._drain()

    def _drain(self, *, all_: bool = False) -> list[Event]:
        """What need wait no more."""
        out: list[Event] = []
        while self._held and (all_ or self._open is None or self._whole()):
            head = self._held.pop(0)
            out.append(head)
            self._open, self._said = None, []
            if isinstance(head, ToolCallDelta):
                own = [e for e in self._held if isinstance(e, ToolCallDelta) and e.call == head.call]
                self._held = [e for e in self._held if not isinstance(e, ToolCallDelta) or e.call != head.call]
                out += own
                self._open, self._said = head.call, [head.arguments, *(e.arguments for e in own)]
        return out

    def _whole(self) -> bool:
        try:
            return isinstance(json.loads("".join(self._said)), dict)
        except ValueError:
            return False
