"""A pool of replicas: what is tried again, what is not, and who gets nothing."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Literal

import pytest

from baseload.runtime import pool as pools
from baseload.runtime.pool import Pool, Replica, State
from baseload.runtime.wall_share import WallShare
from baseload.wire.backend import ModelInfo
from baseload.wire.chat import ChatRequest, Event, Failure, Finish, Message, Text, TextDelta, Usage

INFO = ModelInfo("m", 4096)
BROKEN = Failure("The supplier a broke off its answer.", 502, "server_error", "upstream_error", retryable=True)
FULL = Failure("Too many requests wait.", 429, "rate_limit_error", "rate_limit_exceeded", retryable=True)
WRONG = Failure("That cannot be.", 400, "invalid_request_error", "upstream_refused")
LONG = "one two three four " * 100


class Server:
    """Answers with what it was told to, one list of events for each call, the last one again and again."""

    def __init__(self, name: str, *answers: Sequence[Event | None], state: State | None = "up") -> None:
        self.name = name
        self.state: State | None = state
        self.asked = self.closed = 0
        self.answers: list[Sequence[Event | None]] = list(answers) or [[TextDelta(name), Usage(3, 1), Finish("stop")]]

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        self.asked += 1
        for event in self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]:
            if event is None:
                await asyncio.sleep(0.1)
            else:
                yield event

    async def probe(self) -> State | None:
        return self.state

    async def disconnect(self) -> None:
        self.closed += 1


@asynccontextmanager
async def running(*servers: Server, patience_s: float = 0.0, share: WallShare | None = None) -> AsyncIterator[Pool]:
    pool = Pool(INFO, [Replica(s.name, s) for s in servers], patience_s=patience_s, share=share)
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()


async def ask(pool: Pool, text: str = LONG) -> list[Event]:
    async with aclosing(pool.generate(ChatRequest("m", (Message("user", (Text(text),)),)))) as events:
        return [event async for event in events]


def text(events: Sequence[Event]) -> str:
    return "".join(e.text for e in events if isinstance(e, TextDelta))


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pools, "PROBE_EVERY_S", 0.02)


async def test_one_prompt_goes_to_one_replica():
    a, b, c = Server("a"), Server("b"), Server("c")
    async with running(a, b, c) as pool:
        assert len({text(await ask(pool)) for _ in range(9)}) == 1
        assert sorted((a.asked, b.asked, c.asked)) == [0, 0, 9]


@pytest.mark.parametrize("failure", [BROKEN, FULL])
async def test_what_fails_before_its_first_word_is_tried_elsewhere(failure: Failure):
    a, b = Server("a", [Usage(3, 0), failure]), Server("b")
    async with running(a, b) as pool:
        for n in range(20):
            pool.replicas["a"].state = "up"  # as its probe will say, sooner or later
            assert text(await ask(pool, f"{n} " * 200)) == "b"
        assert a.asked == pool.replicas["a"].failed == pool.retries > 0


async def test_each_replica_is_tried_once_and_then_the_failure_is_told():
    a, b = Server("a", [FULL]), Server("b", [FULL])
    async with running(a, b, patience_s=30) as pool:
        assert await ask(pool) == [FULL]
        assert a.asked == b.asked == 1


async def test_what_fails_after_its_first_word_is_not_tried_again():
    broken = [TextDelta("once upon"), BROKEN]
    a, b = Server("a", broken), Server("b", broken)
    async with running(a, b) as pool:
        events = await ask(pool)
        assert (text(events), events[-1]) == ("once upon", BROKEN)
        assert a.asked + b.asked == 1


async def test_a_wrong_request_is_nobodys_failure():
    a, b = Server("a", [WRONG]), Server("b", [WRONG])
    async with running(a, b) as pool:
        assert await ask(pool) == [WRONG]
        assert a.asked + b.asked == 1 and all(r.state == "up" and not r.failed for r in pool.replicas.values())


@pytest.mark.parametrize("state", ["down", "unready"])
async def test_who_is_not_up_gets_nothing(state: Literal["down", "unready"]):
    a, b = Server("a", state=state), Server("b")
    async with running(a, b) as pool:
        for n in range(20):
            assert text(await ask(pool, f"{n} " * 200)) == "b"
        a.state = "up"
        while pool.replicas["a"].state != "up":
            await asyncio.sleep(0.01)
        assert {text(await ask(pool, f"{n} " * 200)) for n in range(20)} == {"a", "b"}


async def test_a_replica_that_an_operator_drains_finishes_what_it_has():
    a, b = Server("a", [TextDelta("a"), None, Finish("stop")]), Server("b", [TextDelta("b"), None, Finish("stop")])
    async with running(a, b) as pool:
        task = asyncio.create_task(ask(pool))
        while not a.asked + b.asked:
            await asyncio.sleep(0)
        home = "a" if a.asked else "b"
        pool.drain(home)
        assert text(await ask(pool)) != home
        assert text(await task) == home
        pool.drain(home, closed=False)
        assert text(await ask(pool)) == home


async def test_nobody_up_is_waited_for_and_then_said():
    a = Server("a", state="down")
    async with running(a) as pool:
        [failure] = await ask(pool)
        assert isinstance(failure, Failure) and (failure.status, failure.code) == (503, "no_replica")
        assert not pool.is_up and not a.asked
    async with running(a, patience_s=30) as pool:
        task = asyncio.create_task(ask(pool))
        await asyncio.sleep(0.05)
        assert not task.done()
        a.state = "up"
        assert text(await task) == "a"


async def test_the_only_replica_is_asked_again_once_it_has_been_away():
    a = Server("a", [BROKEN], [TextDelta("back"), Finish("stop")])
    async with running(a, patience_s=30) as pool:
        a.state = "down"
        task = asyncio.create_task(ask(pool))
        while pool.replicas["a"].state != "down":
            await asyncio.sleep(0.01)
        a.state = "up"
        assert text(await task) == "back"


async def test_a_request_that_breaks_whoever_answers_it_breaks_no_more_than_three():
    servers = [Server(name, [BROKEN]) for name in "abcde"]
    async with running(*servers) as pool:
        assert await ask(pool) == [BROKEN]
        assert sum(s.asked for s in servers) == 3


async def test_a_client_is_told_at_once_that_all_who_are_up_are_full():
    a, b = Server("a", [FULL]), Server("b", state="down")
    async with running(a, b, patience_s=3600) as pool:
        assert await asyncio.wait_for(ask(pool), 10) == [FULL]


async def test_silence_cuts_the_connections_after_some_probes():
    a = Server("a")
    async with running(a) as pool:
        a.state = None
        while pool.replicas["a"].state != "down":
            await asyncio.sleep(0.01)
        assert pool.replicas["a"].strikes >= pools.STRIKES
        while not a.closed:
            await asyncio.sleep(0.01)


async def test_a_client_that_leaves_takes_its_load_with_it():
    a = Server("a", [TextDelta("a"), *[None] * 300])
    async with running(a) as pool:
        stream = pool.generate(ChatRequest("m", prompt="x"))
        assert await anext(stream) == TextDelta("a")
        assert pool.replicas["a"].in_flight == 1
        await stream.aclose()
        assert pool.replicas["a"].in_flight == 0


async def test_requests_share_the_machines_time():
    now = 0.0
    share = WallShare(lambda: now)
    with share.use() as first:
        now = 4.0
        with share.use() as second:
            now = 10.0
            assert (first(), second()) == (7.0, 3.0)
        now = 11.0
        assert first() == 8.0
    now = 20.0
    assert share.busy_s == 11.0


async def test_an_answer_says_its_share_of_this_machines_time():
    share = WallShare()
    async with running(Server("a", [None, TextDelta("a"), Usage(3, 1), Finish("stop")]), share=share) as pool:
        [seconds] = [e.device_seconds for e in await ask(pool) if isinstance(e, Usage)]
        assert seconds is not None and 0.0 < seconds <= share.busy_s
    async with running(Server("a")) as pool:
        assert [e.device_seconds for e in await ask(pool) if isinstance(e, Usage)] == [None]
