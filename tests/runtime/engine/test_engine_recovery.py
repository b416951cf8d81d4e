"""What the engine survives: a thread that is stuck, dead or broken, wherever that happens."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from baseload.kernels.spec import StepBatch
from baseload.runtime.engine.config import EngineConfig
from baseload.runtime.engine.engine import RESTARTED, Engine
from baseload.runtime.engine.request import GenerationRequest, TokenOutput
from baseload.wire.chat import SamplingParams
from baseload.wire.errors import Unavailable

from .fake_model import FakeRunner, FakeTokenizer

CONFIG = EngineConfig(n_pages=40, page_size=4, max_batch=8, token_budget=32, max_queue=4, watchdog_s=1.0)


class Trap(FakeTokenizer):
    """A tokenizer that does something else once, when told to."""

    def __init__(self) -> None:
        self.sprung = threading.Event()
        self.let_go = threading.Event()
        self.armed: str | None = None

    def token_bytes(self, id: int, /) -> bytes:
        armed, self.armed = self.armed, None
        if armed == "hang":
            self.sprung.set()
            assert self.let_go.wait(20)
        if armed == "die":
            raise SystemExit
        return super().token_bytes(id)


async def answer(engine: Engine, name: str, **params: int) -> list[TokenOutput]:
    sampling = SamplingParams(**{"temperature": 0.0, "max_tokens": 6, "ignore_eos": True, **params})
    stream = engine.submit(GenerationRequest(name, (1, 2, 3, 4, 5), sampling))
    return await asyncio.wait_for(_read(stream), 15)


async def _read(stream: object) -> list[TokenOutput]:
    return [output async for output in stream]  # pyright: ignore[reportGeneralTypeIssues]


class Clock:
    """Time that passes when a test says so: a slow machine is not taken for a stuck engine."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def later(self, reached: threading.Event) -> None:
        """Minutes later, `reached` having happened."""
        while not reached.is_set():
            await asyncio.sleep(0.005)
        self.now += 600


async def until_alive(engine: Engine) -> None:
    for _ in range(2000):
        if engine.stats().alive:
            return
        await asyncio.sleep(0.005)
    raise AssertionError("the engine did not come back")


@asynccontextmanager
async def running(trap: Trap, runner: FakeRunner | None = None, clock: Clock | None = None) -> AsyncIterator[Engine]:
    engine = Engine(runner or FakeRunner(), trap, CONFIG, clock or Clock())
    engine.start()
    try:
        yield engine
    finally:
        trap.let_go.set()
        engine.close()


def said(outputs: list[TokenOutput]) -> str:
    assert outputs[-1].finish == "length"
    return "".join(output.text for output in outputs)


async def test_a_thread_stuck_beside_the_model_is_replaced_at_once(caplog: pytest.LogCaptureFixture):
    """It does not hold the model, so nobody waits for it; when it wakes up it finds that its time is over."""
    trap, clock = Trap(), Clock()
    async with running(trap, clock=clock) as engine:
        well = said(await answer(engine, "well"))
        trap.armed = "hang"
        stuck, _ = await asyncio.gather(answer(engine, "stuck"), clock.later(trap.sprung))
        assert [output.failure for output in stuck] == [RESTARTED]
        await until_alive(engine)
        assert said(await answer(engine, "after")) == well and engine.stats().restarts == 1
        trap.let_go.set()
        await asyncio.sleep(0.05)
        assert said(await answer(engine, "later")) == well
        engine.check_integrity()
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("engine") == 1, "the old thread has left"
    (record,) = [r for r in caplog.records if "Stacks" in r.message]
    assert record.levelno == logging.ERROR and "token_bytes" in record.message, "the log says where it was stuck"


async def test_a_step_that_comes_too_late_may_not_use_the_model(monkeypatch: pytest.MonkeyPatch):
    trap, runner, clock = Trap(), FakeRunner(), Clock()
    async with running(trap, runner, clock) as engine:
        scheduler = engine._now.core.scheduler
        schedule = scheduler.schedule

        def hang() -> object:
            plan = schedule()
            trap.sprung.set()
            assert trap.let_go.wait(20)
            return plan

        monkeypatch.setattr(scheduler, "schedule", hang)
        stuck, _ = await asyncio.gather(answer(engine, "stuck"), clock.later(trap.sprung))
        assert [output.failure for output in stuck] == [RESTARTED]
        await until_alive(engine)
        await answer(engine, "after")
        before = runner.tokens_run
        trap.let_go.set()
        await asyncio.sleep(0.1)
        assert runner.tokens_run == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_dead_thread_is_replaced():
    trap = Trap()
    async with running(trap) as engine:
        trap.armed = "die"
        assert [output.failure for output in await answer(engine, "unlucky")] == [RESTARTED]
        await until_alive(engine)
        assert said(await answer(engine, "after")) and engine.stats().restarts == 1


async def test_a_scheduler_that_breaks_its_promise_costs_one_restart(monkeypatch: pytest.MonkeyPatch):
    async with running(Trap()) as engine:
        well = said(await answer(engine, "well"))
        steps = engine.stats().steps

        def fail() -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(engine._now.core.scheduler, "schedule", fail)
        assert [output.failure for output in await answer(engine, "unlucky")] == [RESTARTED]
        await until_alive(engine)
        assert said(await answer(engine, "after")) == well
        assert engine.stats().restarts == 1 and engine.stats().steps > steps, "counters go on"


async def test_while_it_is_not_there_the_engine_says_so():
    trap = Trap()
    engine = Engine(FakeRunner(), trap, CONFIG)
    assert not engine.stats().alive
    with pytest.raises(Unavailable, match="restarted") as caught:
        await answer(engine, "too early")
    assert caught.value.status == 503 and caught.value.retry_after


async def test_the_watchdog_goes_by_the_clock_it_was_given():
    """Real time in which that clock stands still is no reason to restart; minutes of it in no time are."""
    clock, held, gate = Clock(), threading.Event(), threading.Event()

    def hold(batch: StepBatch) -> None:
        held.set()
        assert gate.wait(20)

    async with running(Trap(), FakeRunner(before_run=hold), clock) as engine:
        reading = asyncio.create_task(answer(engine, "slow"))
        await asyncio.sleep(0.6)
        assert not reading.done() and engine.stats().alive
        await clock.later(held)
        assert not engine.stats().alive and engine.stats().last_step_age_s >= 600, "health sees it before the watchdog acts"
        assert [output.failure for output in await reading] == [RESTARTED]
        gate.set()
        await until_alive(engine)
        assert said(await answer(engine, "after"))


async def test_one_id_is_one_request():
    async with running(Trap()) as engine:
        first = asyncio.create_task(answer(engine, "same", max_tokens=50))
        await asyncio.sleep(0)
        with pytest.raises(ValueError, match="same"):
            await answer(engine, "same")
        assert said(await first)
