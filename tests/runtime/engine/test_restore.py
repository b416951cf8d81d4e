"""Prefixes that come back from the store: after eviction, after a push-out, after a restart, never from a broken file."""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from baseload.runtime.engine.config import EngineConfig
from baseload.runtime.engine.core import EngineCore
from baseload.runtime.engine.engine import Engine
from baseload.runtime.engine.kv_cache import KvCache, page_key, salt_key
from baseload.runtime.engine.kv_store import KvStore
from baseload.runtime.engine.request import GenerationRequest, TokenOutput
from baseload.wire.chat import SamplingParams

from .fake_model import FakeTokenizer, PagedRunner

POISON = 95
CONFIG = EngineConfig(n_pages=40, page_size=4, max_batch=8, token_budget=16, restored_pages=3)
PROMPT = tuple(random.Random(3).choices(range(1, 80), k=61))


class MemoryStore:
    """A PageStore without a thread: copies at once, holds any number of pages."""

    def __init__(self, pages: Any) -> None:
        self.pages, self.kept, self.loads = pages, {}, 0

    def has(self, key: bytes) -> bool:
        return key in self.kept

    def load(self, key: bytes, page: int) -> bool:
        self.loads += 1
        self.pages[page] = self.kept.get(key, 255)
        return key in self.kept

    def keep(self, key: bytes, page: int, depth: int, is_kept: Callable[[], bool]) -> None:
        if is_kept():
            self.kept.setdefault(key, self.pages[page].copy())

    def discard(self, key: bytes) -> None:
        self.kept.pop(key, None)


class Bench:
    """A core on a paged fake model and a store in memory, driven by hand."""

    def __init__(self, config: EngineConfig = CONFIG, kept: dict[bytes, Any] | None = None) -> None:
        self.runner = PagedRunner(config.n_pages, config.page_size, poison=POISON)
        self.store = MemoryStore(self.runner.pages)
        self.store.kept = {} if kept is None else kept
        self.core = EngineCore(self.runner, FakeTokenizer(), config, self.store)
        self.outputs: dict[str, list[TokenOutput]] = {}

    def submit(self, name: str, prompt: tuple[int, ...] = PROMPT, salt: str = "", max_tokens: int = 6) -> None:
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        self.core.submit(GenerationRequest(name, prompt, sampling, cache_salt=salt))
        self.outputs[name] = []

    def step(self) -> None:
        for name, output in self.core.step():
            self.outputs[name].append(output)
        self.core.check_integrity()

    def answer(self, name: str, *args: Any, **more: Any) -> list[int]:
        self.submit(name, *args, **more)
        return self.finish(name)

    def finish(self, name: str) -> list[int]:
        while self.core.is_busy:
            self.step()
        return [token for output in self.outputs[name] for token in output.token_ids]

    def cached(self, name: str) -> int:
        return self.outputs[name][-1].cached_tokens


def test_a_name_depends_on_every_token_before_and_on_the_salt():
    names = {page_key(salt_key(salt), block) for salt in ("", "a", "b") for block in ((1, 2), (2, 1), (1, 2, 0))}
    names |= {page_key(name, (1, 2)) for name in list(names)}
    assert len(names) == 18 and all(len(name) == 32 for name in names)


def test_a_second_process_finds_what_the_first_has_computed():
    first = Bench()
    cold = first.answer("cold")
    second = Bench(kept=first.store.kept)
    assert second.answer("warm") == cold
    assert second.cached("warm") == 60 and second.runner.tokens_run == 61 - 60 + 5, "all but the prompt's last token"
    assert second.core.prefix_hit_tokens == 60


def test_the_answers_pages_are_kept_too():
    first = Bench()
    said = first.answer("one", max_tokens=20)
    second = Bench(kept=first.store.kept)
    second.answer("two", (*PROMPT, *said, 7))
    assert second.cached("two") == 80


def test_reading_back_goes_in_portions_and_holds_up_nobody():
    kept = Bench()
    kept.answer("x")
    bench = Bench(kept=kept.store.kept)
    bench.submit("other", (5, 6), max_tokens=50)
    bench.step()
    bench.submit("long")
    for n in (3, 6, 9, 12, 15):
        bench.step()
        assert bench.store.loads == n and len(bench.outputs["other"]) == 1 + n // 3
    assert len(bench.outputs["long"]) == 1


def test_two_with_one_prefix_read_it_once():
    kept = Bench()
    cold = kept.answer("x")
    bench = Bench(kept=kept.store.kept)
    bench.submit("a")
    bench.submit("b")
    assert bench.finish("a") == bench.finish("b") == cold
    assert bench.store.loads == 15 and bench.cached("a") == bench.cached("b") == 60


def test_while_it_reads_a_request_can_be_aborted():
    kept = Bench()
    kept.answer("x")
    bench = Bench(kept=kept.store.kept)
    bench.submit("gone")
    bench.step()
    bench.core.abort("gone")
    bench.step()
    assert not bench.core.is_busy and bench.core.cache.n_available == CONFIG.n_pages
    assert bench.answer("again") and bench.store.loads == 15, "what was read stays in the tree"


def test_pages_evicted_from_the_pool_come_back():
    bench = Bench(EngineConfig(n_pages=18, page_size=4, max_batch=8, token_budget=16))
    cold = bench.answer("cold")
    bench.answer("other", tuple(80 - t for t in PROMPT))
    assert bench.answer("warm") == cold and bench.store.loads > 10 and bench.cached("warm") == 60


def test_who_was_pushed_out_reads_its_pages_back():
    alone = {name: Bench().answer(name, prompt, max_tokens=30) for name, prompt in (("a", PROMPT), ("b", PROMPT[::-1]))}
    bench = Bench(EngineConfig(n_pages=35, page_size=4, max_batch=8, token_budget=16))
    bench.submit("a", PROMPT, max_tokens=30)
    bench.submit("b", PROMPT[::-1], max_tokens=30)
    assert {name: bench.finish(name) for name in "ab"} == alone
    assert bench.core.scheduler.preemptions and bench.store.loads and bench.cached("b") == 0


def test_a_page_that_cannot_be_read_is_computed():
    first = Bench()
    cold = first.answer("x")
    keys = list(first.store.kept)
    second = Bench(kept=first.store.kept)
    second.store.has = lambda key: True
    del first.store.kept[keys[5]]
    assert second.answer("y") == cold and second.cached("y") == 20


def test_salts_keep_pages_apart():
    first = Bench()
    first.answer("mine", salt="me")
    second = Bench(kept=first.store.kept)
    second.answer("yours", salt="you")
    second.answer("nobody's")
    assert second.store.loads == 0
    second.answer("mine", salt="me")
    assert second.store.loads == 15


def test_pages_are_kept_only_when_their_logits_were_sound():
    """A prompt that breaks has written pages, some of them before it broke; none may outlive the process."""
    bench = Bench()
    bench.answer("sick", (*PROMPT[:30], POISON, *PROMPT[:9]))
    assert bench.outputs["sick"][-1].failure is not None and not bench.store.kept
    bench.submit("gone")
    bench.step()
    bench.core.abort("gone")
    bench.step()
    assert not bench.store.kept, "of this one nobody knows"
    bench.answer("well")
    assert len(bench.store.kept) == 16


def test_what_broke_a_request_is_forgotten():
    """If a broken page has got into the store after all, it breaks one request in each process, not all there will ever be."""
    first = Bench()
    cold = first.answer("x")
    second = Bench(kept=first.store.kept)
    key = list(second.store.kept)[3]
    sick = PagedRunner(1, 4)
    sick.pages[0] = second.store.kept[key]
    sick._tokens[2] = POISON
    second.store.kept[key] = sick.pages[0].copy()
    second.runner._sums = second.runner._sums.copy()  # it must not look too closely
    second.runner.run = _without_checks(second.runner)
    second.answer("unlucky")
    assert second.outputs["unlucky"][-1].failure is not None and key not in second.store.kept
    assert second.answer("after") == cold


def _without_checks(runner: PagedRunner) -> Callable[..., Any]:
    def run(batch: Any) -> Any:
        try:
            return PagedRunner.run(runner, batch)
        except AssertionError:
            raise ArithmeticError("broken numbers") from None

    return run


def test_a_sequence_may_not_read_over_what_it_has_begun_to_compute(sequence: Callable[..., Any]):
    store = MemoryStore(PagedRunner(10, 4).pages)
    cache, one = KvCache(10, 4, store), sequence(range(1, 20))
    store.has = lambda key: True
    assert cache.extend(one, 2)
    cache.advance(one, 2)
    one.restoring = True
    assert cache.restore(one, 5) == 0 and not one.restoring and store.loads == 0


# ------------------------------------------------------------------------------------------------ with the thread and the disk


@asynccontextmanager
async def running(root: Path, **more: Any) -> AsyncIterator[Engine]:
    runner = PagedRunner(CONFIG.n_pages, CONFIG.page_size)
    store = KvStore(root, 1 << 20, runner.pages, lambda: b"i" * 32)
    store.start()
    assert store.flush(20)
    engine = Engine(runner, FakeTokenizer(), CONFIG, store=store, **more)
    engine.start()
    try:
        yield engine
    finally:
        await engine.drain(0)
        engine.close()


async def answer(engine: Engine, name: str = "x", prompt: tuple[int, ...] = PROMPT) -> tuple[str, int]:
    """The text, and how many tokens of the prompt were known."""
    stream = engine.submit(GenerationRequest(name, prompt, SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)))
    outputs = [output async for output in stream]
    assert outputs[-1].finish == "length", outputs[-1]
    return "".join(output.text for output in outputs), outputs[-1].cached_tokens


async def test_a_drained_engine_has_written_all(tmp_path: Path):
    async with running(tmp_path) as engine:
        text, known = await answer(engine)
        assert known == 0
    async with running(tmp_path) as engine:
        assert await answer(engine) == (text, 60)
        assert engine._store is not None and engine._store.flush(20)  # the page of the answer is written anew
        stats = engine.stats().kv_store
        assert stats.enabled and (stats.hits, stats.corrupt, stats.pages) == (15, 0, 16)
        engine.check_integrity()


async def test_flipped_bytes_never_change_the_text(tmp_path: Path):
    """The model notices a wrong page by itself, and would fail."""
    async with running(tmp_path) as engine:
        text, _ = await answer(engine)
    (file,) = tmp_path.glob("*/pages")
    whole, rng = file.read_bytes(), random.Random(4)
    for _ in range(40):
        broken = bytearray(whole)
        for _ in range(rng.choice((1, 1, 3, 30))):
            broken[rng.randrange(88 if rng.random() < 0.1 else len(whole))] ^= rng.randrange(1, 256)
        file.write_bytes(broken[: rng.choice((len(whole), rng.randrange(len(whole))))])
        async with running(tmp_path) as engine:
            assert (await answer(engine))[0] == text
            engine.check_integrity()


async def test_a_new_generation_of_the_engine_uses_the_store_and_the_old_one_spoils_nothing(tmp_path: Path):
    now, held, gate = [0.0], threading.Event(), threading.Event()
    async with running(tmp_path, clock=lambda: now[0]) as engine:
        text, _ = await answer(engine)
        assert engine._store is not None and engine._store.flush(20)
        old = engine._now

        class Stuck(FakeTokenizer):
            def token_bytes(self, id: int, /) -> bytes:
                held.set()
                assert gate.wait(20)
                return super().token_bytes(id)

        old.core._tokenizer = Stuck()
        stuck = engine.submit(
            GenerationRequest("stuck", PROMPT[::-1], SamplingParams(temperature=0.0, max_tokens=2, logprobs=0))
        )
        await asyncio.to_thread(held.wait, 20)
        now[0] += 600
        (failed,) = [output async for output in stuck]
        assert failed.failure is not None
        while not engine.stats().alive:
            await asyncio.sleep(0.005)
        assert await answer(engine) == (text, 60), "the new pool is empty, the store is not"
        saved = engine.stats().kv_store.saved
        gate.set()
        assert old.thread is not None
        await asyncio.to_thread(old.thread.join, 20)
        assert engine._store.flush(20) and engine.stats().kv_store.saved == saved
        assert await answer(engine) == (text, 60)


@pytest.mark.parametrize("kind", ["read", "write"])
async def test_a_disk_that_fails_changes_no_answer(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from baseload.runtime.engine.kv_file import PageFile

    async with running(tmp_path) as engine:
        text, _ = await answer(engine)

    def fail(*args: Any) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(PageFile, kind, fail)
    async with running(tmp_path) as engine:
        await answer(engine, "other", PROMPT[::-1])
        assert (await answer(engine))[0] == text
        assert engine._store is not None
        engine._store.flush(20)
        assert not engine.stats().kv_store.enabled and engine.stats().alive
