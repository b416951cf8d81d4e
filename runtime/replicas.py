"""Which replica of a model takes a request: the one that knows its prompt's head, unless it has more than its share to do.

The order of preference for a head is rendezvous hashing (Thaler and Ravishankar, 1998): every front computes the same one
without any memory, and a replica that comes or goes moves only the heads that it gets or had. The share is that of consistent
hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam, arXiv:1608.01350): at most `SLACK` times the mean. What its
first replica is too busy for goes to the second of its order, which then knows the head too. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import ceil

from ..wire.chat import ChatRequest

SLACK = 1.25  # of the mean load
FEW = 4  # running requests that are never too many: an engine computes four nearly as fast as one
HEAD_BYTES = 1024  # of a prompt, about 8 pages of the KV cache: who share them probably share more
LEAST_BYTES = 256  # a shorter head is computed sooner than it is worth a detour


@dataclass(frozen=True, slots=True)
class Seat:
    """A replica as placement sees it. `load`: requests that it is answering; `is_open`: it takes new ones."""

    name: str
    load: int
    is_open: bool = True


def head_of(request: ChatRequest) -> bytes:
    """The first bytes of what the model reads: tools, instructions and the first message of the user, which stay the same
    through a conversation and which requests of one kind share."""
    if request.prompt is not None:
        return repr(request.prompt[: HEAD_BYTES // 4]).encode() if isinstance(request.prompt, tuple) else _cut(request.prompt)
    parts = [f"{tool.name} {tool.description}" for tool in request.tools]
    for message in request.messages:
        parts.append(message.text)
        if message.role == "user":
            break
    return _cut("\0".join(parts))


def _cut(text: str) -> bytes:
    return text[:HEAD_BYTES].encode("utf-8", "replace")[:HEAD_BYTES]


def choose(seats: Sequence[Seat], head: bytes) -> str | None:
    """The name of the replica for a prompt with this head; None where none is open."""
    able = [seat for seat in seats if seat.is_open]
    if not able:
        return None
    if len(head) < LEAST_BYTES:
        return min(able, key=lambda seat: (seat.load, -_weight(seat.name, head))).name
    most = limit(able)
    return max((seat for seat in able if seat.load < most), key=lambda seat: _weight(seat.name, head)).name


def limit(able: Sequence[Seat]) -> int:
    """How many requests a replica may have with the next one. Some replica always has fewer: SLACK is above 1."""
    return max(FEW, ceil(SLACK * (sum(seat.load for seat in able) + 1) / len(able)))


def _weight(name: str, head: bytes) -> int:
    return int.from_bytes(blake2b(head, key=blake2b(name.encode(), digest_size=32).digest(), digest_size=8).digest(), "big")
