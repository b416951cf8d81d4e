"""The flow of events: one end, whatever the source does; nothing left running when it is closed."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.server.streaming import READ_AHEAD, ClientGone, EventFlow, collect, together, unless_gone
from baseload.wire.chat import Event, Failure, Finish, TextDelta, Usage
from baseload.wire.errors import RateLimited

EVENTS = st.one_of(
    st.builds(TextDelta, st.text(max_size=3), index=st.integers(0, 2), tokens=st.integers(0, 3)),
    st.builds(Usage, st.integers(0, 9), st.integers(0, 9)),
    st.builds(Finish, st.just("stop"), index=st.integers(0, 2)),
    st.builds(Failure, st.just("no")),
    st.just("raise"),
    st.just("pause"),
)


async def source(script: Sequence[Event | str]) -> AsyncGenerator[Event, None]:
    for step in script:
        if step == "raise":
            raise ValueError("source")
        elif isinstance(step, str):
            await asyncio.sleep(0)
        else:
            yield step


async def all_of(script: Sequence[Event | str], choices: int) -> list[Event]:
    return await collect(EventFlow(source(script), choices, "req_1"), lambda _: None)


@settings(max_examples=200, deadline=None)
@given(st.lists(EVENTS, max_size=12), st.integers(1, 3))
def test_every_flow_ends_once(script, choices):
    events = asyncio.run(all_of(script, choices))
    failures = [i for i, event in enumerate(events) if isinstance(event, Failure)]
    finished = {event.index for event in events if isinstance(event, Finish)}
    if failures:
        assert failures == [len(events) - 1]
    else:
        assert isinstance(events[-1], Finish)
        assert finished >= set(range(choices))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.text(max_size=2), max_size=5), min_size=1, max_size=4), st.integers(1, 3))
def test_prompts_keep_their_order_and_their_own_text(prompts, choices):
    def script(words: Sequence[str]) -> list[Event | str]:
        deltas = [e for w in words for i in range(choices) for e in (TextDelta(w, index=i, tokens=1), "pause")]
        return [*deltas, Usage(2, len(words) * choices), *(Finish("stop", i) for i in range(choices))]

    async def run() -> list[Event]:
        events = together([source(script(words)) for words in prompts], choices)
        return await collect(EventFlow(events, choices * len(prompts), "req_1"), lambda _: None)

    events = asyncio.run(run())
    for p, words in enumerate(prompts):
        for c in range(choices):
            own = [e.text for e in events if isinstance(e, TextDelta) and e.index == p * choices + c]
            assert own == words
    usage = [e for e in events if isinstance(e, Usage)][-1]
    assert (usage.prompt_tokens, usage.completion_tokens) == (2 * len(prompts), choices * sum(map(len, prompts)))


async def test_the_source_is_read_past_its_end_so_that_it_can_do_its_books():
    booked = []

    async def books() -> AsyncGenerator[Event, None]:
        yield Finish("stop")
        await asyncio.sleep(0.01)
        booked.append(True)

    await collect(EventFlow(books(), 1, "req_1"), lambda _: None)
    assert booked == [True]


async def test_an_error_of_ours_keeps_its_status_and_another_is_internal():
    async def limited() -> AsyncGenerator[Event, None]:
        raise RateLimited("full", retry_after=3)
        yield Finish("stop")

    [failure] = await collect(EventFlow(limited(), 1, "req_1"), lambda _: None)
    assert isinstance(failure, Failure)
    assert (failure.status, failure.code, failure.retry_after) == (429, "rate_limit_exceeded", 3)
    [failure] = await all_of(["raise"], 1)
    assert isinstance(failure, Failure)
    assert (failure.status, failure.code) == (500, "internal_error")
    assert "source" not in failure.message


@pytest.mark.parametrize("steps", range(6))
async def test_closing_at_any_moment_closes_the_source(steps):
    state = []

    async def watched() -> AsyncGenerator[Event, None]:
        state.append("open")
        try:
            while True:
                yield TextDelta("x")
                await asyncio.sleep(0)
        finally:
            state.append("closed")

    flow = EventFlow(watched(), 1, "req_1")
    for _ in range(steps):
        await asyncio.sleep(0)
    await flow.close()
    assert state in ([], ["open", "closed"])
    assert len(asyncio.all_tasks()) == 1


async def test_a_flow_that_is_told_to_end_says_so_and_stops_its_source():
    flow = EventFlow(source([TextDelta("a"), *["pause"] * 100_000]), 1, "req_1")
    assert await flow.first(1) == TextDelta("a")
    flow.end(Failure("draining", 503))
    assert await collect(flow, lambda _: None) == [TextDelta("a"), Failure("draining", 503)]
    await flow.close()
    assert len(asyncio.all_tasks()) == 1


async def test_a_slow_reader_holds_the_source_back():
    made = 0

    async def torrent() -> AsyncGenerator[Event, None]:
        nonlocal made
        while True:
            made += 1
            yield TextDelta("x")

    flow = EventFlow(torrent(), 1, "req_1")
    for _ in range(10):
        await asyncio.sleep(0)
    assert made == READ_AHEAD
    assert len(await flow.take() or []) == READ_AHEAD
    await asyncio.sleep(0)
    assert made > READ_AHEAD
    await flow.close()


async def test_taking_waits_no_longer_than_told():
    flow = EventFlow(source(["pause"] * 10_000), 1, "req_1")
    assert await flow.take(0.001) == []
    assert await flow.first(0.001) is None
    await flow.close()
    assert await flow.take() is None


async def test_one_prompts_failure_stops_the_others():
    closed = []

    async def waiting() -> AsyncGenerator[Event, None]:
        try:
            await asyncio.sleep(60)
            yield Finish("stop")
        finally:
            closed.append(True)

    events = [event async for event in together([waiting(), source([TextDelta("a"), "raise"])], 1)]
    assert isinstance(events[-1], Failure)
    assert closed == [True]
    assert len(asyncio.all_tasks()) == 1


async def test_work_is_cancelled_when_its_client_goes_and_returned_when_it_stays():
    cancelled = []

    async def work() -> str:
        try:
            await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return "done"

    async def stays() -> dict[str, str]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def leaves() -> dict[str, str]:
        await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    assert await unless_gone(work(), stays) == "done"
    with pytest.raises(ClientGone):
        await unless_gone(work(), leaves)
    assert cancelled == [True]
    assert len(asyncio.all_tasks()) == 1


async def test_what_goes_wrong_in_the_work_comes_out_of_it():
    async def work() -> None:
        raise KeyError("x")

    async def stays() -> dict[str, str]:
        await asyncio.sleep(60)
        return {}

    with pytest.raises(KeyError):
        await unless_gone(work(), stays)
