"""How much a supplier may be asked at once and in a minute: what it would refuse is not sent, and what it may take waits.

A request that would wait longer than `patience_s` fails at once with the time after which to come back, and its router asks
the next place.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

from ...wire.backend import Backend, ModelInfo
from ...wire.chat import ChatRequest, Event, Failure, Usage

REFUSED = "supplier_limit"  # the code of what was not sent: it says nothing of the supplier
BURST_S = 10.0  # what was not used of the last so many seconds may be used at once


@dataclass(slots=True)
class Pace:
    """So many units in a minute (the generic cell rate algorithm: ITU-T I.371); 0 for as many as you like."""

    per_minute: float
    clock: Callable[[], float] = time.monotonic
    burst_s: float = BURST_S
    _due: float = 0.0  # when all that was taken would have been earned

    def wait_s(self) -> float:
        """Seconds until the next may go."""
        return max(0.0, self._due - self.burst_s - self.clock()) if self.per_minute else 0.0

    def take(self, units: float) -> None:
        """So many are used."""
        if self.per_minute:
            self._due = max(self._due, self.clock()) + units * 60 / self.per_minute


class Limited:
    """A supplier's Backend that keeps to its limits."""

    def __init__(
        self,
        backend: Backend,
        name: str,
        *,
        at_once: int = 0,
        requests_per_minute: float = 0,
        tokens_per_minute: float = 0,
        patience_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """0 is no limit. Tokens count once they are known, so a minute's limit may be passed by what runs at its end."""
        self._backend, self._name, self._patience_s, self._sleep = backend, name, patience_s, sleep
        self._slots = asyncio.Semaphore(at_once) if at_once else None
        self._requests, self._tokens = Pace(requests_per_minute, clock), Pace(tokens_per_minute, clock)

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """The backend's."""
        return self._backend.models

    def count_tokens(self, request: ChatRequest) -> int | None:
        """The backend's."""
        return self._backend.count_tokens(request)

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        """See Backend.generate."""
        wait = max(self._requests.wait_s(), self._tokens.wait_s())
        if wait > self._patience_s:
            yield self._refusal(wait)
            return
        self._requests.take(1)  # at once: who comes later waits longer
        if wait:
            await self._sleep(wait)
        try:
            if self._slots:
                async with asyncio.timeout(self._patience_s):
                    await self._slots.acquire()
        except TimeoutError:
            yield self._refusal(self._patience_s)
            return
        usage = Usage(0, 0)
        try:
            async with aclosing(self._backend.generate(request)) as events:
                async for event in events:
                    if isinstance(event, Usage):
                        usage = event
                    yield event
        finally:
            self._tokens.take(usage.prompt_tokens + usage.completion_tokens)
            if self._slots:
                self._slots.release()

    def _refusal(self, wait: float) -> Failure:
        message = f"The supplier {self._name} has been asked as much as its limits allow."
        return Failure(message, 429, "rate_limit_error", REFUSED, retryable=True, retry_after=max(1.0, wait))
