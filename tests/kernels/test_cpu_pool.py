"""The threads behind the native step: shared, late, starved, freed and made anew. Nothing here may hang.

A hanging native call cannot be interrupted, so every scenario runs in a thread of its own that is given up on after a while.
"""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from baseload.kernels.cpu import library as native
from baseload.kernels.cpu.library import instruction_sets
from baseload.kernels.cpu.step import NativeStep, NativeWeights, layout_of
from baseload.kernels.spec import DecoderSpec, StepBatch

ISAS = instruction_sets()
PATIENCE_S = 120.0  # the longest scenario takes a few seconds on a quiet machine


def in_time(scenario: Callable[[], None]) -> None:
    """Run it in a thread; fail if it has not ended after a while."""
    ended: list[BaseException | None] = []

    def run() -> None:
        try:
            scenario()
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert ended, "it hangs"
    if ended[0] is not None:
        raise ended[0]


@contextmanager
def pool_of(n: int) -> Iterator[native.Pool]:
    pool = native.Pool(n)
    try:
        yield pool
    finally:
        pool.close()


class Small:
    """A small decoder, batches for it, and the right answers."""

    def __init__(self, kit, pages, row) -> None:
        self.spec: DecoderSpec = kit.spec(2)
        self._weights = {layout_of(isa): kit.weights(self.spec, isa) for isa in ISAS}
        self._pages, self._row = pages, row

    def weights(self, isa: str) -> NativeWeights:
        return self._weights[layout_of(isa)]

    def step(self, pool: native.Pool, isa: str = "", n_pages: int = 80) -> NativeStep:
        return NativeStep(self.spec, self.weights(isa), n_pages, 16, 1024, pool, isa)

    def batch(self, *lengths: int, seed: int = 0) -> StepBatch:
        """Whole prompts of these lengths."""
        rng = np.random.default_rng([seed, *lengths])
        work = [(self._row(rng.integers(0, self.spec.vocab, n).tolist()), n) for n in lengths]
        return self._pages(80, 16).step(work)

    def right(self, pool: native.Pool, batch: StepBatch, isa: str) -> bytes:
        step = self.step(pool, isa)
        try:
            return step.run(batch).logits.tobytes()
        finally:
            step.close()


@pytest.fixture(scope="module")
def small(kit, pages, row) -> Small:
    return Small(kit, pages, row)


LENGTHS = ((1,), (1, 1, 1), (5,), (40, 1, 7), (130,), (1,) * 20)


def check_interleaved(small: Small, pool: native.Pool, rounds: int, seed: int = 0) -> None:
    """Models of every instruction set take turns; each answers as it does alone."""
    rng = random.Random(seed)
    batches = [small.batch(*lengths) for lengths in LENGTHS]
    right = {(isa, i): small.right(pool, batch, isa) for isa in ISAS for i, batch in enumerate(batches)}
    models = [(isa, small.step(pool, isa)) for isa in (*ISAS, *ISAS)]
    for _ in range(rounds):
        isa, step = rng.choice(models)
        i = rng.randrange(len(batches))
        assert step.run(batches[i]).logits.tobytes() == right[isa, i]
    for _, step in models:
        step.close()


@pytest.mark.parametrize("n_threads", range(1, 9))
def test_many_models_take_turns_on_one_pool(small, n_threads):
    def scenario() -> None:
        with pool_of(n_threads) as pool:
            assert pool.n_threads == n_threads
            check_interleaved(small, pool, 150, n_threads)

    in_time(scenario)


def test_engines_of_several_models_step_at_the_same_time(small):
    """Each served model has a thread of its own, and all share the pool."""

    def scenario() -> None:
        with pool_of(3) as pool:
            batches = [small.batch(*lengths) for lengths in LENGTHS]
            right = [small.right(pool, batch, "") for batch in batches]
            failed: list[int] = []

            def serve(seed: int) -> None:
                rng = random.Random(seed)
                step = small.step(pool)
                for _ in range(300):
                    i = rng.randrange(len(batches))
                    if step.run(batches[i]).logits.tobytes() != right[i]:
                        failed.append(i)
                    if rng.random() < 0.05:  # a model goes, another comes
                        step.close()
                        step = small.step(pool)
                step.close()

            engines = [threading.Thread(target=serve, args=(seed,)) for seed in range(3)]
            for engine in engines:
                engine.start()
            for engine in engines:
                engine.join()
            assert not failed

    in_time(scenario)


def test_a_model_is_freed_while_workers_sleep_and_while_they_are_awake(small):
    def scenario() -> None:
        with pool_of(4) as pool:
            batch = small.batch(40, 1)
            expected = small.right(pool, batch, "")
            for pause in (0, 0, 0.02) * 30:
                step = small.step(pool)
                assert step.run(batch).logits.tobytes() == expected
                time.sleep(pause)
                step.close()
                step.close()  # once more does nothing

    in_time(scenario)


def test_a_pool_closed_and_made_anew_a_hundred_times(small):
    def scenario() -> None:
        batch = small.batch(40, 1)
        expected = None
        for i in range(100):
            with pool_of(1 + i % 8) as pool:
                if i % 3:  # and without ever having worked
                    found = small.right(pool, batch, "")
                    expected = expected or found
                    assert found == expected
            pool.close()

    in_time(scenario)


@contextmanager
def busy_cores(per_core: int) -> Iterator[None]:
    """So many processes for each core that want it all the time."""
    count = per_core * (os.cpu_count() or 1)
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def one_core() -> Iterator[None]:
    """This thread, and those that it starts, may use one core only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not pin threads")
@pytest.mark.parametrize("n_threads", [2, 8])
def test_starved_threads_are_waited_for_and_done_without(small, n_threads):
    """A busy process for each core, and all our threads on one: whoever holds a chunk may be put aside in the middle of it."""

    def scenario() -> None:
        with busy_cores(1), one_core(), pool_of(n_threads) as pool:
            check_interleaved(small, pool, 30)

    in_time(scenario)


def test_workers_wake_after_a_long_sleep(small):
    def scenario() -> None:
        with pool_of(3) as pool:
            batch = small.batch(130, 1)
            step = small.step(pool)
            expected = step.run(batch).logits.tobytes()
            for pause in (0.001, 0.05, 0.3):
                time.sleep(pause)
                assert step.run(batch).logits.tobytes() == expected
            step.close()

    in_time(scenario)


@pytest.mark.parametrize("isa", ISAS)
def test_steps_of_all_sizes_in_any_order(small, isa):
    """Scratch memory grows between steps; what an earlier, larger step left in it is never seen."""

    def scenario() -> None:
        with pool_of(2) as pool:
            sizes = ((1,), (600,), (3,), (1,) * 70, (513, 2), (1,), (1000, 90, 1), (1,))
            step = small.step(pool, isa)
            for lengths in sizes:
                batch = small.batch(*lengths)
                assert step.run(batch).logits.tobytes() == small.right(pool, batch, isa), lengths
            step.close()

    in_time(scenario)


@pytest.mark.parametrize("lengths", [(1,), (5, 1), (600,)])
def test_a_step_without_logits_writes_its_keys(small, lengths):
    def scenario() -> None:
        with pool_of(2) as pool:
            batch = small.batch(*lengths)
            loud, silent = small.step(pool), small.step(pool)
            loud.run(batch)
            none = replace(batch, logit_rows=np.zeros(0, np.int32), full_logits=np.zeros(0, np.bool_))
            output = silent.run(none)
            assert output.logits.shape == (0, small.spec.vocab) and not len(output.best) and not len(output.finite)
            assert np.array_equal(loud.pages, silent.pages) and loud.pages.any()
            loud.close()
            silent.close()

    in_time(scenario)


@pytest.mark.parametrize(("asked", "given"), [(0, 1), (-3, 1), (1, 1), (1000, 256)])
def test_how_many_threads_there_can_be(asked, given):
    with pool_of(asked) as pool:
        assert 1 <= pool.n_threads <= given


def test_an_instruction_set_that_the_machine_lacks_is_refused(small):
    with pool_of(1) as pool:
        with pytest.raises(native.NativeUnavailable, match="abacus"):
            small.step(pool, "abacus")
