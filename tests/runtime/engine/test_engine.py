"""The engine's asyncio face: streams that end once, aborts, bounds, faults of the model, and the watchdog."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from baseload.kernels.spec import StepBatch
from baseload.runtime.engine.config import EngineConfig
from baseload.runtime.engine.core import BROKEN, CANCELLED
from baseload.runtime.engine.engine import DRAINED, RESTARTED, Engine, GenerationStream
from baseload.runtime.engine.request import GenerationRequest, TokenOutput
from baseload.wire.chat import SamplingParams
from baseload.wire.errors import BadRequest, ContextLengthExceeded, RateLimited, Unavailable

from .fake_model import VOCAB, FakeRunner, FakeTokenizer

POISON = 95
CONFIG = EngineConfig(n_pages=40, page_size=4, max_batch=8, token_budget=32, max_queue=4, watchdog_s=5.0)


class Gate:
    """Holds the model's steps while shut; of itself it shuts before step number `shut_at`."""

    def __init__(self, shut_at: int = 0) -> None:
        self.open, self.waiting = threading.Event(), threading.Event()
        self.open.set()
        self._shut_at, self._steps = shut_at, 0

    def __call__(self, batch: StepBatch) -> None:
        self._steps += 1
        if self._steps == self._shut_at:
            self.open.clear()
        if not self.open.is_set():
            self.waiting.set()
            assert self.open.wait(20)


@contextlib.asynccontextmanager
async def running(runner: FakeRunner | None = None, config: EngineConfig = CONFIG) -> AsyncIterator[Engine]:
    """A started engine; idle and whole when the test leaves it, if it is the test's end that stops it."""
    engine = Engine(runner or FakeRunner(), FakeTokenizer(), config)
    engine.start()
    try:
        yield engine
        await until(lambda: engine.stats().running + engine.stats().waiting == 0)
        engine.check_integrity()
        assert engine.stats().pages_free + engine.stats().pages_cached == config.n_pages
    finally:
        engine.close()


async def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    for _ in range(int(seconds / 0.005)):
        if true():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come to that")


def request(id: str = "r", prompt: tuple[int, ...] = (1, 2, 3), choice: int = 0, **params: Any) -> GenerationRequest:
    sampling = SamplingParams(**{"temperature": 0.0, "max_tokens": 10, "ignore_eos": True, **params})
    return GenerationRequest(id, prompt, sampling, choice)


async def read(stream: GenerationStream) -> list[TokenOutput]:
    return [output async for output in stream]


def dawdle(batch: StepBatch) -> None:
    time.sleep(0.01)


def fill(engine: Engine, streams: list[GenerationStream]) -> None:
    for i in range(100):
        streams.append(engine.submit(request(str(i))))


async def soon(what: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(what, 15)


def tokens(outputs: list[TokenOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


async def test_a_stream_has_one_end_and_its_tokens_before():
    async with running() as engine:
        outputs = await soon(read(engine.submit(request())))
    assert [output.is_last for output in outputs] == [False] * 9 + [True]
    assert len(tokens(outputs)) == 10 and outputs[-1].finish == "length"
    assert all((output.prompt_tokens, output.cached_tokens) == (3, 0) for output in outputs)


async def test_many_streams_at_once_say_what_each_says_alone():
    prompts = [tuple(range(1 + i % 7, 4 + i)) for i in range(12)]
    async with running() as engine:
        alone = [tokens(await soon(read(engine.submit(request(f"a{i}", prompt))))) for i, prompt in enumerate(prompts)]
        streams = [engine.submit(request(f"b{i}", prompt)) for i, prompt in enumerate(prompts)]
        together = await soon(asyncio.gather(*map(read, streams)))
    assert list(map(tokens, together)) == alone


async def test_a_stop_string_a_stop_token_and_the_models_end_each_end_the_answer():
    async with running() as engine:
        whole = await soon(read(engine.submit(request())))
        third = tokens(whole)[2]
        by_token = await soon(read(engine.submit(request(stop_token_ids=(third,)))))
        assert (by_token[-1].finish, by_token[-1].matched_stop, len(tokens(by_token))) == ("stop", third, 3)
        text = "".join(output.text for output in whole)
        by_text = await soon(read(engine.submit(request(stop=(text[4:6],)))))
        said = "".join(output.text for output in by_text)
        assert (by_text[-1].finish, by_text[-1].matched_stop) == ("stop", text[4:6])
        assert said == text[: text.index(text[4:6])]
        by_end = await soon(read(engine.submit(request(ignore_eos=False, logit_bias=((96, 100.0),)))))
        assert (by_end[-1].finish, by_end[-1].matched_stop, by_end[-1].text) == ("stop", None, "")


async def test_an_answer_ends_where_the_context_does():
    async with running(FakeRunner(context_length=20)) as engine:
        assert engine.longest == 20
        outputs = await soon(read(engine.submit(request(max_tokens=None))))
    assert len(tokens(outputs)) == 17 and outputs[-1].finish == "length"


async def test_the_second_time_a_prompt_is_known():
    prompt = tuple(range(30))
    async with running() as engine:
        first = await soon(read(engine.submit(request("a", prompt))))
        second = await soon(read(engine.submit(request("b", prompt))))
        stats = engine.stats()
    assert (first[-1].cached_tokens, second[-1].cached_tokens) == (0, 28)
    assert tokens(first) == tokens(second)
    assert (stats.prefix_hit_tokens, stats.prefix_query_tokens) == (28, 60)


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (request(prompt=()), BadRequest),
        (request(prompt=(1,) * 160), ContextLengthExceeded),
        (request(prompt=(VOCAB,)), BadRequest),
        (request(prompt=(-1,)), BadRequest),
        (request(logit_bias=((VOCAB, 1.0),)), BadRequest),
        (request(stop_token_ids=(VOCAB,)), BadRequest),
    ],
)
async def test_what_can_never_be_answered_is_refused_at_once(bad: GenerationRequest, error: type[Exception]):
    async with running() as engine:
        with pytest.raises(error):
            engine.submit(bad)
        assert len(await soon(read(engine.submit(request())))) == 10


async def test_leaving_a_stream_stops_its_work_within_a_step_and_frees_its_pages():
    gate = Gate(shut_at=4)
    runner = FakeRunner(before_run=gate)
    async with running(runner) as engine:
        stream = engine.submit(request(max_tokens=None))
        assert await asyncio.to_thread(gate.waiting.wait, 10)
        async for _ in stream:
            break
        await stream.aclose()
        gate.open.set()
        await until(lambda: engine.stats().running + engine.stats().waiting == 0)
        assert engine.stats().steps == 4, "more than the step that it was in"
        assert engine.stats().pages_free + engine.stats().pages_cached == CONFIG.n_pages


async def test_an_abort_from_elsewhere_ends_the_stream_that_is_read():
    gate = Gate()
    gate.open.clear()
    async with running(FakeRunner(before_run=gate)) as engine:
        reading = asyncio.create_task(read(engine.submit(request())))
        assert await asyncio.to_thread(gate.waiting.wait, 10)
        engine.abort("r")
        engine.abort("r")
        engine.abort("nobody")
        gate.open.set()
        outputs = await soon(reading)
    assert outputs[-1].failure == CANCELLED and [output.is_last for output in outputs].count(True) == 1


async def test_a_cancelled_reader_stops_the_work():
    async with running(FakeRunner(before_run=lambda batch: time.sleep(0.01))) as engine:
        reading = asyncio.create_task(read(engine.submit(request(max_tokens=None))))
        await until(lambda: engine.stats().generation_tokens > 0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await until(lambda: engine.stats().running == 0, 2)


async def test_a_full_queue_refuses_and_later_takes_again():
    gate = Gate()
    gate.open.clear()
    async with running(FakeRunner(before_run=gate)) as engine:
        streams: list[GenerationStream] = []
        with pytest.raises(RateLimited) as refused:
            fill(engine, streams)
        assert refused.value.code == "queue_full"
        assert CONFIG.max_queue <= len(streams) <= CONFIG.max_queue + CONFIG.max_batch
        gate.open.set()
        for outputs in await soon(asyncio.gather(*map(read, streams))):
            assert outputs[-1].finish == "length"
        assert len(await soon(read(engine.submit(request("again"))))) == 10


async def test_draining_lets_the_running_finish_and_takes_no_more():
    async with running() as engine:
        reading = asyncio.create_task(read(engine.submit(request(max_tokens=100))))
        await asyncio.sleep(0)
        await soon(engine.drain(10))
        assert (await soon(reading))[-1].finish == "length"
        with pytest.raises(Unavailable):
            engine.submit(request("late"))


async def test_draining_ends_what_takes_too_long():
    gate = Gate()
    gate.open.clear()
    async with running(FakeRunner(before_run=gate)) as engine:
        reading = asyncio.create_task(read(engine.submit(request())))
        assert await asyncio.to_thread(gate.waiting.wait, 10)
        draining = asyncio.create_task(engine.drain(0.05))
        outputs = await soon(reading)
        assert [output.failure for output in outputs] == [DRAINED]
        gate.open.set()
        await soon(draining)


async def test_closing_tells_whoever_still_waits():
    gate = Gate()
    gate.open.clear()
    engine = Engine(FakeRunner(before_run=gate), FakeTokenizer(), CONFIG)
    engine.start()
    reading = asyncio.create_task(read(engine.submit(request())))
    assert await asyncio.to_thread(gate.waiting.wait, 10)
    closing = asyncio.create_task(asyncio.to_thread(engine.close))
    assert (await soon(reading))[-1].failure is not None
    gate.open.set()
    await soon(closing)
    assert not engine.stats().alive


async def test_an_exception_in_the_model_ends_its_batch_and_the_engine_goes_on():
    failing = threading.Event()

    def fail(batch: StepBatch) -> None:
        if failing.is_set():
            raise RuntimeError("device lost")

    async with running(FakeRunner(before_run=fail)) as engine:
        well = await soon(read(engine.submit(request())))
        failing.set()
        ends = await soon(asyncio.gather(*(read(engine.submit(request(str(i)))) for i in range(4))))
        assert [[output.failure for output in outputs] for outputs in ends] == [[BROKEN]] * 4
        failing.clear()
        assert tokens(await soon(read(engine.submit(request())))) == tokens(well)
        assert engine.stats().restarts == 0 and engine.stats().alive


async def test_a_row_that_is_no_number_ends_itself_only():
    async with running(FakeRunner(poison=POISON)) as engine:
        alone = await soon(read(engine.submit(request("a"))))
        well, sick, other = await soon(
            asyncio.gather(
                read(engine.submit(request("w"))),
                read(engine.submit(request("s", (1, 2, POISON, 4, 5, 6)))),
                read(engine.submit(request("o", (9, 8), temperature=1.0, seed=3))),
            )
        )
        assert tokens(well) == tokens(alone) and other[-1].finish == "length"
        assert [output.failure for output in sick] == [BROKEN]
        again = await soon(read(engine.submit(request("s2", (1, 2, POISON, 4, 5, 6)))))
        assert again[-1].failure == BROKEN and again[-1].cached_tokens == 0, "what broke was kept for others"


async def test_a_stuck_step_is_noticed_and_a_new_generation_takes_over():
    gate = Gate()
    config = EngineConfig(n_pages=40, page_size=4, max_batch=8, token_budget=32, watchdog_s=1.0)
    async with running(FakeRunner(before_run=gate), config) as engine:
        well = await soon(read(engine.submit(request())))
        before = engine.stats()
        gate.open.clear()
        stuck = await soon(asyncio.gather(*(read(engine.submit(request(str(i)))) for i in range(3))))
        assert [[output.failure for output in outputs] for outputs in stuck] == [[RESTARTED]] * 3
        assert engine.stats().restarts == 1 and not engine.stats().alive, "the stuck step still has the model"
        gate.open.set()
        await until(lambda: engine.stats().alive)
        assert tokens(await soon(read(engine.submit(request("after"))))) == tokens(well)
        after = engine.stats()
        assert after.restarts == 1 and after.steps > before.steps and after.generation_tokens >= before.generation_tokens + 10


async def test_an_idle_engine_is_not_taken_for_stuck():
    async with running(config=EngineConfig(n_pages=8, page_size=4, watchdog_s=0.05)) as engine:
        await asyncio.sleep(0.4)
        assert engine.stats().restarts == 0 and engine.stats().alive
        assert len(await soon(read(engine.submit(request())))) == 10


async def test_the_counters_count():
    async with running() as engine:
        for i in range(3):
            await soon(read(engine.submit(request(str(i), (i, i, i, i, i)))))
        stats = engine.stats()
    assert (stats.prompt_tokens, stats.generation_tokens, stats.prefix_hit_tokens) == (15, 30, 0)
    assert stats.steps == 30 and stats.preemptions == stats.restarts == 0
    assert stats.pages_total == 40 and stats.pages_cached == 9 and stats.pages_free == 31


async def test_a_tiny_pool_pushes_out_and_still_answers_all():
    config = EngineConfig(n_pages=12, page_size=2, max_batch=4, token_budget=8)
    prompts = [(i, i + 1, i + 2) for i in range(8)]
    async with running(config=config) as engine:
        outputs = await soon(asyncio.gather(*(read(engine.submit(request(str(p), p, max_tokens=20))) for p in prompts)))
        assert engine.stats().preemptions > 0
    async with running() as engine:
        for prompt, crowded in zip(prompts, outputs, strict=True):
            assert tokens(await soon(read(engine.submit(request("r", prompt, max_tokens=20))))) == tokens(crowded)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_choices_of_one_prompt_share_its_pages_and_their_luck_only_when_greedy(temperature: float):
    prompt = tuple(range(20))
    params: dict[str, Any] = {"temperature": temperature, "seed": 5}
    async with running() as engine:
        ends = await soon(asyncio.gather(*(read(engine.submit(request(str(c), prompt, c, **params))) for c in range(3))))
    assert len({tuple(tokens(outputs)) for outputs in ends}) == (3 if temperature else 1)


async def test_the_requests_seconds_and_the_idle_time_make_up_the_wall_clock():
    async with running() as engine:
        began = time.monotonic()
        streams = [engine.submit(request(f"r{i}", tuple(range(1, 20 + i)), max_tokens=20)) for i in range(6)]
        ends = [(await read(stream))[-1] for stream in streams]
        wall, busy = time.monotonic() - began, engine.stats().device_seconds
    shares = [end.device_seconds or 0.0 for end in ends]
    assert min(shares) > 0
    assert sum(shares) == pytest.approx(busy, rel=0.01)
    assert busy <= wall
