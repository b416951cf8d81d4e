"""A supplier's limits: what may not go yet waits its turn, and what would wait too long is told when to come back."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.router.suppliers.limits import BURST_S, Limited
from baseload.router.suppliers.profile import SupplierError, parse_profile
from baseload.wire.backend import ModelInfo
from baseload.wire.chat import ChatRequest, Event, Failure, Finish, TextDelta, Usage

ASK = ChatRequest("acme/big")


@dataclass
class Source:
    """Answers after `holds` is set; counts how many it answers at once."""

    tokens: int = 10
    now: float = 0.0
    at_once: int = 0
    most: int = 0
    sent: list[float] = field(default_factory=list)
    holds: asyncio.Event = field(default_factory=asyncio.Event)
    models: tuple[ModelInfo, ...] = (ModelInfo("acme/big", 100),)

    def count_tokens(self, request: ChatRequest) -> int | None:
        return None

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        self.sent.append(self.now)
        try:
            yield TextDelta("x", tokens=1)
            await self.holds.wait()
            yield Usage(self.tokens - 1, 1)
            yield Finish("stop")
        finally:
            self.at_once -= 1

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    def limited(self, **limits: Any) -> Limited:
        return Limited(self, "acme", clock=lambda: self.now, sleep=self.sleep, **limits)


async def answer(backend: Limited) -> list[Event]:
    return [event async for event in backend.generate(ASK)]


async def test_no_more_at_once_than_allowed_and_all_are_answered():
    source = Source()
    backend = source.limited(at_once=3)
    tasks = [asyncio.create_task(answer(backend)) for _ in range(10)]
    await asyncio.sleep(0.02)
    assert source.at_once == 3
    source.holds.set()
    assert all(isinstance(events[-1], Finish) for events in await asyncio.gather(*tasks))
    assert source.most == 3


async def test_who_would_wait_too_long_for_a_place_is_told():
    source = Source()
    backend = source.limited(at_once=1, patience_s=0.05)
    first = asyncio.create_task(answer(backend))
    await asyncio.sleep(0)
    [refused] = await answer(backend)
    assert isinstance(refused, Failure) and (refused.status, refused.code) == (429, "supplier_limit") and refused.retry_after
    source.holds.set()
    assert isinstance((await first)[-1], Finish)
    assert isinstance((await answer(backend))[-1], Finish)  # the place is free again


async def test_a_client_that_leaves_gives_its_place_back():
    source = Source()
    backend = source.limited(at_once=1)
    first = asyncio.create_task(answer(backend))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    source.holds.set()
    assert isinstance((await asyncio.wait_for(answer(backend), 2))[-1], Finish)


@settings(max_examples=60, deadline=None)
@given(st.integers(6, 600), st.lists(st.floats(0, 30), min_size=1, max_size=60))
def test_no_minute_sees_more_requests_than_its_limit(per_minute: int, pauses: list[float]):
    async def run() -> Source:
        source = Source()
        source.holds.set()
        backend = source.limited(requests_per_minute=per_minute, patience_s=1e9)
        for pause in pauses:
            source.now += pause
            await answer(backend)
        return source

    sent = asyncio.run(run()).sent
    for begin in sent:
        within = sum(begin <= at < begin + 60 for at in sent)
        assert within <= per_minute * (1 + BURST_S / 60) + 1


async def test_tokens_that_were_used_hold_the_next_request_back():
    source = Source(tokens=600)
    source.holds.set()
    backend = source.limited(tokens_per_minute=600, patience_s=20)
    await answer(backend)
    [refused] = await answer(backend)
    assert isinstance(refused, Failure) and refused.retry_after == pytest.approx(60 - BURST_S)
    source.now += 35
    assert isinstance((await answer(backend))[-1], Finish)  # it waited for the rest
    assert source.now == pytest.approx(60 - BURST_S)


@pytest.mark.parametrize("key", ["max_concurrent", "requests_per_minute", "tokens_per_minute"])
@pytest.mark.parametrize("wrong", [-1, 1.5, "7", True])
def test_a_wrong_limit_is_named(key: str, wrong: Any):
    with pytest.raises(SupplierError, match=key):
        parse_profile("acme", {"base_url": "http://127.0.0.1", key: wrong})
