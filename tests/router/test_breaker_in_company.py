"""A breaker among concurrent calls: only the probe's end decides, and long pauses are not waited out."""

import asyncio
from collections.abc import AsyncGenerator

from baseload.router.suppliers.resilience import LONGEST_WAIT_S, OPEN_AFTER, OPEN_S, Resilient
from baseload.wire.backend import ModelInfo
from baseload.wire.chat import ChatRequest, Event, Failure, Finish, Message, Text, TextDelta

REQUEST = ChatRequest("big", (Message("user", (Text("hi"),)),))
DOWN = Failure("down", 502, "server_error", "upstream_error", retryable=False)


class Gated:
    """A backend whose calls begin with a word and end when told how."""

    models = (ModelInfo("big", 1000, local=False),)

    def __init__(self) -> None:
        self.ends: list[asyncio.Future[Event]] = []

    def count_tokens(self, request: ChatRequest) -> None:
        return None

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        end = asyncio.get_running_loop().create_future()
        self.ends.append(end)
        yield TextDelta("a")
        yield await end


class Guarded:
    """Calls through a breaker on a clock of ours."""

    def __init__(self) -> None:
        self.now, self.source, self.slept = 0.0, Gated(), list[float]()
        self.backend = Resilient(self.source, "acme", clock=lambda: self.now, sleep=self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    async def begin(self) -> AsyncGenerator[Event, None]:
        """A call that has had its first event."""
        events = self.backend.generate(REQUEST)
        self.first = await anext(events)
        return events

    async def end(self, call: int, events: AsyncGenerator[Event, None], how: Event) -> None:
        self.source.ends[call].set_result(how)
        assert [e async for e in events] == [how]


async def opened() -> tuple[Guarded, AsyncGenerator[Event, None]]:
    """An open breaker, and a call (number 0) that began before it opened."""
    guarded = Guarded()
    early = await guarded.begin()
    for n in range(1, OPEN_AFTER + 1):
        await guarded.end(n, await guarded.begin(), DOWN)
    await guarded.begin()
    assert isinstance(guarded.first, Failure) and guarded.first.code == "supplier_resting"
    return guarded, early


async def test_an_older_calls_end_does_not_admit_a_second_probe():
    guarded, early = await opened()
    guarded.now = OPEN_S
    probe = await guarded.begin()
    assert guarded.first == TextDelta("a")
    await guarded.end(0, early, Finish("stop"))
    await guarded.begin()
    assert isinstance(guarded.first, Failure), "the probe has not ended yet"
    await guarded.end(OPEN_AFTER + 1, probe, Finish("stop"))
    await guarded.begin()
    assert guarded.first == TextDelta("a")


async def test_an_older_calls_failure_does_not_lengthen_the_pause():
    guarded, early = await opened()
    guarded.now = OPEN_S - 1
    await guarded.end(0, early, DOWN)
    guarded.now = OPEN_S
    await guarded.begin()
    assert guarded.first == TextDelta("a")
    assert guarded.backend.breaker(REQUEST.model).pause_s == OPEN_S


async def test_a_probes_failure_does():
    guarded, _ = await opened()
    guarded.now = OPEN_S
    await guarded.end(OPEN_AFTER + 1, await guarded.begin(), DOWN)
    guarded.now = 2 * OPEN_S
    await guarded.begin()
    assert isinstance(guarded.first, Failure)
    guarded.now = 3 * OPEN_S
    await guarded.begin()
    assert guarded.first == TextDelta("a")


async def retried(pause: float) -> tuple[list[Event], list[float]]:
    """What a client gets of a supplier that asks for `pause` seconds, and what was waited."""
    busy, slept = (
        Failure("busy", 429, "rate_limit_error", "rate_limit_exceeded", retryable=True, retry_after=pause),
        list[float](),
    )

    class Busy(Gated):
        async def generate(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
            yield busy

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    return [e async for e in Resilient(Busy(), "acme", sleep=sleep).generate(REQUEST)], slept


async def test_a_short_pause_is_waited_out_and_a_long_one_is_passed_on():
    events, slept = await retried(LONGEST_WAIT_S)
    assert slept == [LONGEST_WAIT_S] * 2 and len(events) == 1
    events, slept = await retried(LONGEST_WAIT_S + 1)
    assert slept == [] and [type(e) for e in events] == [Failure]
