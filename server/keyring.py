"""The virtual keys as the door knows them: all of them in memory, looked after in the ledger at most once a second.

A request whose key is known costs a hash and no wait; one that comes when the second is over waits for one look at two
numbers, in a thread of our own. A key that nobody has made is refused without asking the database: guessing keys loads
nothing. If the ledger can't be read, the keys last seen hold for another minute, and then nobody's does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from ..ledger import keys, scopes
from ..wire.errors import Unavailable
from .callers import Caller, Rates

log = logging.getLogger("baseload.server")
FRESH_S = 0.5  # so long a revoked key may still open
STALE_S = 60.0
LOOK_S = 2.0  # how long a request waits for the ledger before it makes do with what was last seen


class Keyring:
    """The keys of one ledger. `close` it to let its thread go."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine, self._clock = engine, clock
        self._thread = ThreadPoolExecutor(1, "keys")
        self._callers: dict[str, tuple[str, Caller]] = {}  # id -> (hash, who that is)
        self._stamp = (-1, -1)
        self._seen: float | None = None  # when the ledger was last read
        self._looking: asyncio.Future[None] | None = None

    async def find(self, secret: str) -> Caller | None:
        """Who bears that secret; None: nobody, or no longer. Raises Unavailable where the ledger has been away too long."""
        await self._look()
        hashed, found = self._callers.get(keys.id_in(secret), ("", None))
        return found if keys.matches(hashed, secret) else None

    async def any(self) -> bool:
        """Whether there has ever been a key: then everybody needs one. Raises as `find` does."""
        await self._look()
        return self._stamp[0] > 0

    def close(self) -> None:
        """Look no more."""
        self._thread.shutdown(wait=True)

    async def _look(self) -> None:
        """Have the keys as they were less than `FRESH_S` ago; many who wait cause one look."""
        if self._seen is not None and self._clock() - self._seen < FRESH_S:
            return
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().run_in_executor(self._thread, self._read)
        await asyncio.wait([self._looking], timeout=LOOK_S)
        if self._seen is None or self._clock() - self._seen > STALE_S:
            raise Unavailable("The keys cannot be read at the moment.", code="ledger_unavailable")

    def _read(self) -> None:
        began = self._clock()
        try:
            stamp = keys.stamp(self._engine)
            if stamp != self._stamp:
                made, held = keys.secrets_of(self._engine)
                # Replaced as a whole: the event loop reads it meanwhile.
                self._callers = {id: (hashed, who) for id, (hashed, key) in held.items() if (who := self._known(key))}
                self._stamp = (made, stamp[1])
            self._seen = began
        except SQLAlchemyError as error:
            log.error("the keys cannot be read: %s", str(getattr(error, "orig", None) or error).split("\n", 1)[0])

    def _known(self, key: keys.Key) -> Caller | None:
        before = self._callers.get(key.id)
        if before:
            return before[1]  # with the rates as they stand: a key's scopes never change
        try:
            allowed = scopes.parse(key.scopes)
        except ValueError as error:
            log.error("the key %s opens nothing: %s", key.id, error)
            return None
        limited = allowed.requests_per_minute or allowed.tokens_per_minute
        return Caller(key.id, allowed, key.id, Rates.of(allowed) if limited else None)
