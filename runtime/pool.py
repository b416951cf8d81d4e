"""One model served by several replicas, as one Backend: placement, health, and another try before the first word.

A replica that fails a request is not asked again until it has answered a probe: a probe costs a millisecond, and says better
than any count of errors whether a server is there. A replica that says it is not ready (it starts, or drains) gets nothing new
and finishes what it has. What has not said its first word is tried elsewhere, or waits until a replica is back; what has, ends
with a Failure. Everything here happens in one event loop.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from ..wire.backend import ModelInfo
from ..wire.chat import ChatRequest, Event, Failure, Finish, Usage
from .replicas import Seat, choose, head_of
from .wall_share import WallShare

log = logging.getLogger("baseload.replicas")

State = Literal["up", "unready", "down"]
PROBE_EVERY_S = 1.0
STRIKES = 6  # probes without an answer: down, for it may just be busy; a refused connection needs no second one
TRIES = 3  # of a request: one that kills whoever answers it must not kill all
TOO_BUSY = 429


class Source(Protocol):
    """What answers behind a replica."""

    def generate(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        """See Backend.generate."""
        ...

    async def probe(self) -> State | None:
        """What it says of itself; None: it did not say anything in time. Never raises."""
        ...

    async def disconnect(self) -> None:
        """Let the connections go, those in use too; they are opened again when asked."""
        ...


@dataclass(eq=False)
class Replica:
    """One server, and what is known of it."""

    name: str
    source: Source
    state: State = "down"
    in_flight: int = 0
    answered: int = 0  # requests that it brought to an end
    failed: int = 0  # that it did not
    downs: int = 0
    strikes: int = 0
    every_s: float = 0.0  # between its probes; 0: PROBE_EVERY_S
    is_closed: bool = False  # an operator's word: nothing new, whatever the probes say
    suspected: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def seat(self) -> Seat:
        """As placement sees it."""
        return Seat(self.name, self.in_flight, self.state == "up" and not self.is_closed)


class Pool:
    """A model's replicas. `start` it before use, and `close` it."""

    def __init__(
        self, model: ModelInfo, replicas: Sequence[Replica], *, patience_s: float = 10.0, share: WallShare | None = None
    ) -> None:
        """`patience_s`: how long a request waits where no replica is up; `share`: of the machine that they run on, if they
        run on this one."""
        self.models = (model,)
        self.replicas = {replica.name: replica for replica in replicas}
        self._patience_s, self._share = patience_s, share
        self.retries = 0  # requests that were given to another replica, or again
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Ask each replica once, and from then on every second."""
        await asyncio.gather(*(self._look_at(replica) for replica in self.replicas.values()))
        self._tasks = [asyncio.create_task(self._watch(replica)) for replica in self.replicas.values()]

    async def close(self) -> None:
        """Stop the probes, and let the connections go."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError, Exception):
                await task
        for replica in self.replicas.values():
            await replica.source.disconnect()

    @property
    def is_up(self) -> bool:
        """Whether anybody takes a request now."""
        return any(replica.seat.is_open for replica in self.replicas.values())

    def count_tokens(self, request: ChatRequest) -> int | None:
        """Only the servers could tell."""
        return None

    def drain(self, name: str, *, closed: bool = True) -> None:
        """Give a replica nothing new, or (`closed` false) take it back. Raises KeyError."""
        self.replicas[name].is_closed = closed
        self._tell()

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        """See Backend.generate."""
        head, until = head_of(request), time.monotonic() + self._patience_s
        tried: set[tuple[str, int]] = set()  # a replica that has been down since is another one
        last: Failure | None = None
        for attempt in range(TRIES):
            full = last is not None and last.status == TOO_BUSY  # to come back later is the client's, who is told so
            replica = await self._take(head, tried, 0.0 if full else until)
            if replica is None:
                break
            self.retries += attempt > 0
            tried.add((replica.name, replica.downs))
            begun, failure = False, None
            async with aclosing(self._ask(replica, request)) as events:
                async for event in events:
                    if isinstance(event, Failure):
                        failure = event
                        if not begun and _elsewhere(event):
                            break
                    begun = begun or not isinstance(event, Usage)
                    yield event
            if failure is None or begun:
                return
            last = failure
            log.info("a request that %s failed before its first word is tried again", replica.name)
        name = self.models[0].id
        yield last or Failure(f"No server of {name} is up.", 503, "server_error", "no_replica", retryable=True, retry_after=5)

    async def _take(self, head: bytes, tried: set[tuple[str, int]], until: float) -> Replica | None:
        """A replica with one more request on it; None where none has come up by then. One that is merely busy, or broke, and
        is the only one left, is not asked twice."""
        while True:
            seats = [r.seat for r in self.replicas.values() if (r.name, r.downs) not in tried]
            if name := choose(seats, head):
                self.replicas[name].in_flight += 1  # at once: who chooses next must see it
                return self.replicas[name]
            if all((r.name, r.downs) in tried and r.state == "up" for r in self.replicas.values()):
                return None
            self._changed.clear()
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    await self._changed.wait()
            except TimeoutError:
                return None

    async def _ask(self, replica: Replica, request: ChatRequest) -> AsyncGenerator[Event, None]:
        """Its events, with its share of the machine's time; what they say of the replica is noted."""
        try:
            share = self._share or WallShare()
            with share.use() as used:
                async with aclosing(replica.source.generate(request)) as events:
                    async for event in events:
                        if isinstance(event, Failure):
                            self._failed(replica, event)
                        elif isinstance(event, Finish):
                            replica.answered += not event.index
                        elif isinstance(event, Usage) and self._share is not None:
                            event = replace(event, device_seconds=round(used(), 9))
                        yield event
        finally:
            replica.in_flight -= 1

    def _failed(self, replica: Replica, failure: Failure) -> None:
        if not _elsewhere(failure):
            return  # the request's fault
        replica.failed += 1
        if failure.status >= 500 and replica.state == "up":
            replica.state = "unready"  # until its probe has said better
            replica.suspected.set()

    async def _watch(self, replica: Replica) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(replica.every_s or PROBE_EVERY_S):
                    await replica.suspected.wait()
            replica.suspected.clear()
            await self._look_at(replica)
            if replica.suspected.is_set():
                await asyncio.sleep(PROBE_EVERY_S / 10)  # one that is well, but for its answers, is not probed all the time

    async def _look_at(self, replica: Replica) -> None:
        found = await replica.source.probe()
        replica.strikes = replica.strikes + 1 if found is None else 0
        self.mark(replica, found or ("down" if replica.strikes >= STRIKES else replica.state))
        if replica.strikes == STRIKES:
            await replica.source.disconnect()  # what still waits for it has waited long enough

    def mark(self, replica: Replica, state: State) -> None:
        """What is now known of a replica."""
        if state != replica.state:
            log.log(logging.INFO if state == "up" else logging.WARNING, "replica %s is %s", replica.name, state)
            replica.downs += state == "down"
            replica.state = state
        self._tell()

    def _tell(self) -> None:
        self._changed.set()


def _elsewhere(failure: Failure) -> bool:
    """Whether another replica may do better: this one broke, is going away, or is full."""
    return failure.status >= 500 or failure.status == TOO_BUSY
