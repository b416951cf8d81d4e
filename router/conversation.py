"""Conversations as the router knows them: which place carries one, what it has cost, and whether it gets on.

A client sends its whole history with every turn and mostly no name for it; two requests are one conversation if they bear
one name, or begin with the same words by the same key. Kept in memory, bounded, the oldest forgotten first.
"""

import hashlib
from collections import Counter, OrderedDict
from dataclasses import dataclass

from ..wire.chat import ChatRequest, Message, Text, ToolCall, ToolResult

KEPT = 10_000
STALLED_AFTER = 3  # times that one call was made with one result
SEEN = 24  # of the last calls


@dataclass(slots=True)
class Conversation:
    """`place` made its last accepted answer; `usd`: what suppliers asked for it so far; `held`: what running calls may cost."""

    place: str = ""
    usd: float = 0.0
    held: float = 0.0


class Conversations:
    """Those of late."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept, self._known = kept, OrderedDict[str, Conversation]()

    def of(self, request: ChatRequest, key_id: str | None) -> Conversation:
        """The conversation that `request` belongs to."""
        name = identity(request, key_id)
        found = self._known.setdefault(name, Conversation())
        self._known.move_to_end(name)
        while len(self._known) > self._kept:
            self._known.popitem(last=False)
        return found


def identity(request: ChatRequest, key_id: str | None) -> str:
    """A name for a conversation: the client's own, or a digest of how it begins."""
    begun = request.extras.session or "\0".join(_words(m) for m in _beginning(request))
    named = f"{key_id}\0{bool(request.extras.session)}\0{begun}"
    return hashlib.blake2b(named.encode("utf-8", "replace"), digest_size=16).hexdigest()


def _beginning(request: ChatRequest) -> list[Message]:
    """The head and the first turn of the user."""
    n = next((i for i, m in enumerate(request.messages) if m.role == "user"), len(request.messages))
    return list(request.messages[: n + 1])


def _words(message: Message) -> str:
    return f"{message.role}:{message.text}"


def in_tool_loop(request: ChatRequest) -> bool:
    """Whether a model waits for what its call has found: another one would not know what it was about."""
    last = request.messages[-1] if request.messages else None
    return last is not None and any(isinstance(b, ToolResult) for b in last.content)


def stalled(request: ChatRequest) -> str:
    """Why the conversation does not get on; empty where it does: the same call again and again, with the same result."""
    open_calls: dict[str, ToolCall] = {}  # ids may come again: a call's result is the next one that bears its id
    seen: list[tuple[str, str, str]] = []
    for block in (b for m in request.messages for b in m.content):
        if isinstance(block, ToolCall):
            open_calls[block.id] = block
        elif isinstance(block, ToolResult) and (call := open_calls.pop(block.call_id, None)):
            result = "".join(b.text if isinstance(b, Text) else type(b).__name__ for b in block.content)
            seen.append((call.name, call.arguments, result))
    counted = Counter(seen[-SEEN:]).most_common(1)
    (name, _, _), most = counted[0] if counted else (("", "", ""), 0)
    if most < STALLED_AFTER:
        return ""
    return f"the tool {name[:60]} was called {most} times with the same arguments and the same result"
