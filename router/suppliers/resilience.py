"""What keeps calls to a supplier sane: a few retries inside a budget, and a breaker.

Before the first token a failed call may be tried again, at most twice, and only while retries are a small share of what is
in flight: retries must not become the load that keeps a supplier down. After the first token nothing is tried again.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass

from ...wire.backend import Backend, ModelInfo
from ...wire.chat import ChatRequest, Event, Failure
from .limits import REFUSED

MAX_RETRIES = 2
RETRY_SHARE, RETRY_FLOOR = 0.2, 3  # of the live requests, as Envoy's retry budget
BACKOFF_S, LONGEST_WAIT_S = 0.25, 20.0
OPEN_AFTER, OPEN_S, OPEN_LONGEST_S = 5, 10.0, 300.0
# Told of a call that failed without a word and is to be made again: says whether it may. Of the task that reads the answer.
repeats: ContextVar[Callable[[Failure], bool]] = ContextVar("repeats")


class RetryBudget:
    """How many retries may be under way at once, over all requests to one supplier."""

    def __init__(self) -> None:
        self.live = 0
        self._retrying = 0

    def take(self) -> bool:
        """Ask for a retry; `give_back` it when it is over."""
        if self._retrying >= max(RETRY_FLOOR, RETRY_SHARE * self.live):
            return False
        self._retrying += 1
        return True

    def give_back(self) -> None:
        """A retry is over."""
        self._retrying -= 1


@dataclass(slots=True)
class Breaker:
    """Open after five failures in a row: nothing is sent until a pause is over, and then one probe decides."""

    clock: Callable[[], float] = time.monotonic
    failures: int = 0
    pause_s: float = OPEN_S
    open_until: float | None = None
    probing: bool = False

    def admits(self) -> bool:
        """Whether a call may go out now; a True while half open is the one probe."""
        if self.open_until is None:
            return True
        if self.clock() < self.open_until or self.probing:
            return False
        self.probing = True
        return True

    def succeeded(self) -> None:
        """A call got an answer."""
        self.failures, self.open_until, self.probing, self.pause_s = 0, None, False, OPEN_S

    def failed(self) -> None:
        """A call failed in a way that says something about the supplier."""
        self.failures += 1
        if self.probing:
            self.pause_s = min(self.pause_s * 2, OPEN_LONGEST_S)
        if self.probing or self.failures >= OPEN_AFTER:
            self.open_until, self.probing = self.clock() + self.pause_s, False

    def abandoned(self) -> None:
        """A call ended without saying anything about the supplier (its client left)."""
        self.probing = False


class Resilient:
    """A supplier's Backend with retries and a breaker."""

    def __init__(
        self,
        backend: Backend,
        name: str,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._backend, self._name, self._sleep = backend, name, sleep
        self._clock, self._breakers, self.budget = clock, dict[str, Breaker](), RetryBudget()

    def breaker(self, model: str) -> Breaker:
        """The breaker of one of its models: that one is overloaded or gone says nothing of another."""
        return self._breakers.setdefault(model, Breaker(self._clock))

    def breakers(self) -> dict[str, bool]:
        """Model -> whether it is left alone for now."""
        return {model: breaker.open_until is not None for model, breaker in list(self._breakers.items())}

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """The backend's."""
        return self._backend.models

    def count_tokens(self, request: ChatRequest) -> int | None:
        """The backend's."""
        return self._backend.count_tokens(request)

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        """See Backend.generate."""
        self.budget.live += 1
        retries, breaker = 0, self.breaker(request.model)
        try:
            while True:
                if not breaker.admits():
                    yield self._resting(breaker)
                    return
                # Admitted while half open: this call is the probe, and only its end decides for the others.
                probe = breaker.probing
                begun, failure = False, None
                try:
                    async with aclosing(self._backend.generate(request)) as events:
                        async for event in events:
                            if isinstance(event, Failure):
                                failure = event
                                break
                            begun = True
                            yield event
                    _judge(breaker, failure, probe)
                finally:
                    if probe:
                        breaker.abandoned()  # nothing, unless its client left
                if failure is None:
                    return
                if begun or not failure.retryable or not self._may_retry(failure, retries):
                    yield failure
                    return
                if (told := repeats.get(None)) is not None and not told(failure):
                    if not retries:
                        self.budget.give_back()
                    yield failure
                    return
                retries += 1
                await self._sleep(_wait_s(failure, retries))
        finally:
            self.budget.live -= 1
            if retries:
                self.budget.give_back()

    def _may_retry(self, failure: Failure, retries: int) -> bool:
        """One place in the budget serves all retries of a request. A supplier that asks for a long pause is not asked again."""
        if failure.code == REFUSED or retries >= MAX_RETRIES or (failure.retry_after or 0) > LONGEST_WAIT_S:
            return False
        return retries > 0 or self.budget.take()

    def _resting(self, breaker: Breaker) -> Failure:
        wait = max(1.0, (breaker.open_until or 0) - breaker.clock())
        message = f"The supplier {self._name} has failed repeatedly and is left alone for now."
        return Failure(message, 503, "server_error", "supplier_resting", retryable=False, retry_after=wait)


def _judge(breaker: Breaker, failure: Failure | None, probe: bool) -> None:
    if breaker.open_until is not None and not probe:
        return  # a call from before the breaker opened
    if failure is not None and failure.code == REFUSED:
        return  # it was never sent
    # A refusal of the request (4xx) says that the supplier works; 429 that it is alive but wants a pause.
    if failure is None or (400 <= failure.status < 500 and failure.status != 429):
        breaker.succeeded()
    else:
        breaker.failed()


def _wait_s(failure: Failure, retries: int) -> float:
    """The supplier's own Retry-After; else a doubling pause with jitter, so that clients don't return together."""
    if failure.retry_after is not None:
        return failure.retry_after
    return BACKOFF_S * 2 ** (retries - 1) * random.uniform(0.5, 1.5)
