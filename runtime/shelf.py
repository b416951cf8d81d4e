"""Several models in one memory: loaded when asked for, put away when another needs the room.

Whoever asks for a model that is there gets it at once. Otherwise he waits in a queue of models, first come first served, and
all who wait for one model come in together when it is loaded, so that two models which are both wanted take turns by groups
of requests and not by single ones. A model is put away only when nobody uses it; where room is needed and all are busy, the
one least lately asked for takes no more requests until it has been put away, so nobody waits for ever. Everything here
happens in one event loop; only loading takes a thread.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

log = logging.getLogger("baseload.runtime")

STAY_S = 2.0  # a model that has just been loaded is not asked to go before: loading costs about that


class Closable(Protocol):
    """What lies on the shelf: an engine that runs."""

    async def drain(self, timeout_s: float) -> None:
        """End what still runs."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


T = TypeVar("T", bound=Closable)


@dataclass(eq=False)
class _Slot(Generic[T]):
    """One model: what it needs, and what has become of it."""

    name: str
    load: Callable[[], T]
    nbytes: int
    item: T | None = None
    users: int = 0
    asked: int = 0  # the shelf's count when it was last asked for
    since: float = 0.0  # when it was loaded, by the loop's clock
    leaving: bool = False  # takes no more requests
    waiting: list[asyncio.Future[T]] = field(default_factory=list)


class Shelf(Generic[T]):
    """Models by name, of which as many are loaded as fit `budget` bytes (0: all do; one always may)."""

    def __init__(self, budget: int, stay_s: float = STAY_S) -> None:
        self._budget, self._stay_s = budget, stay_s
        self._slots: dict[str, _Slot[T]] = {}
        self._queue: list[_Slot[T]] = []  # models to be loaded, or to be let in again
        self._loading: asyncio.Task[None] | None = None
        self._count = 0
        self.loads = 0

    def add(self, name: str, load: Callable[[], T], nbytes: int) -> None:
        """A model that may be asked for. `load` blocks and runs in a thread; it raises what is wrong with the model."""
        self._slots[name] = _Slot(name, load, nbytes)

    @property
    def loaded(self) -> Mapping[str, T]:
        """What is in memory now."""
        return {slot.name: slot.item for slot in self._slots.values() if slot.item is not None}

    @asynccontextmanager
    async def lend(self, name: str) -> AsyncIterator[T]:
        """The model, for as long as the block runs. Raises what loading it raises."""
        slot = self._slots[name]
        self._count += 1
        slot.asked = self._count
        item = slot.item
        if item is None or slot.leaving:
            item = await self._wait_for(slot)
        else:
            slot.users += 1
        try:
            yield item
        finally:
            slot.users -= 1
            self._settle()

    async def close(self) -> None:
        """Put everything away; what still runs is ended."""
        if self._loading is not None:
            await asyncio.gather(self._loading, return_exceptions=True)
        for slot in self._slots.values():
            if slot.item is not None:
                await self._put_away(slot)

    async def _wait_for(self, slot: _Slot[T]) -> T:
        waiter: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        slot.waiting.append(waiter)
        if slot not in self._queue:
            self._queue.append(slot)
        self._settle()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter in slot.waiting:
                slot.waiting.remove(waiter)
            elif not waiter.cancelled() and waiter.exception() is None:  # let in just now, and will not come
                slot.users -= 1
                self._settle()
            raise

    def _settle(self) -> None:
        """Do for the first of the queue what can be done now; called whenever something changes."""
        while self._queue and self._loading is None:
            slot = self._queue[0]
            if not slot.waiting:
                self._queue.pop(0)
            elif slot.item is not None:  # it was to leave, but is still here and it is its turn again
                self._let_in(slot)
            elif not self._make_room(slot):
                return
            else:
                self._loading = asyncio.create_task(self._load(slot))

    def _make_room(self, slot: _Slot[T]) -> bool:
        """Whether `slot` can be loaded once `_load` has put away who is idle; asks busy ones to leave if not."""
        here = sorted((s for s in self._slots.values() if s.item is not None), key=lambda s: s.asked)
        too_much = sum(s.nbytes for s in here) + slot.nbytes - self._budget if self._budget else 0
        for victim in here:
            if too_much <= 0:
                break
            too_much -= victim.nbytes
            stay = victim.since + self._stay_s - asyncio.get_running_loop().time()
            if victim.users and stay > 0:
                asyncio.get_running_loop().call_later(stay, self._settle)
                return False
            victim.leaving = True
        return not any(s.leaving and s.users for s in here)

    async def _load(self, slot: _Slot[T]) -> None:
        try:
            for victim in [s for s in self._slots.values() if s.leaving and s.item is not None]:
                log.info("%s is put away to make room for %s", victim.name, slot.name)
                await self._put_away(victim)
            slot.item = await asyncio.to_thread(slot.load)
            slot.since = asyncio.get_running_loop().time()
            self.loads += 1
            self._let_in(slot)
        except Exception as error:
            self._refuse(slot, error)
        finally:
            self._loading = None
            self._settle()

    async def _put_away(self, slot: _Slot[T]) -> None:
        item, slot.item, slot.leaving = slot.item, None, False
        if item is not None:
            await item.drain(0)
            await asyncio.to_thread(item.close)

    def _let_in(self, slot: _Slot[T]) -> None:
        slot.leaving = False
        if slot in self._queue:
            self._queue.remove(slot)
        waiting, slot.waiting = slot.waiting, []
        for waiter in waiting:
            if not waiter.done() and slot.item is not None:
                slot.users += 1
                waiter.set_result(slot.item)

    def _refuse(self, slot: _Slot[T], error: Exception) -> None:
        if slot in self._queue:
            self._queue.remove(slot)
        waiting, slot.waiting = slot.waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_exception(error)
