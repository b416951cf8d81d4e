"""A row's logits are the same bits whoever shares the step, however its tokens are cut, on any pages and any threads."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from baseload.kernels.cpu import library as native
from baseload.kernels.cpu.library import instruction_sets
from baseload.kernels.cpu.pack import Format
from baseload.kernels.cpu.step import NativeStep, NativeWeights, layout_of
from baseload.kernels.spec import DecoderSpec, LayerSpec

ISAS = instruction_sets()
N_PAGES = 256
Bits = NDArray[np.uint32]


def mixed_spec(kit) -> DecoderSpec:
    """Windows below a page and above one, grouped heads, an odd vocabulary, and (5 layers) every precision."""
    layers = (LayerSpec(window=5), LayerSpec(), LayerSpec(window=70), LayerSpec(), LayerSpec(window=16))
    return kit.spec(layers=layers, n_heads=6, qk_norm=True, attn_softcap=20.0, tied=False)


FORMATS = {"": Format.Q4_MIN, "v": Format.Q8_BIAS, "gate": Format.Q4_BIAS, "down": Format.BF16, "head": Format.Q8_MIN}


class Alone:
    """What a step says of all tokens of a sequence that is computed by itself, in one piece, on pages of its own."""

    def __init__(self, step: NativeStep, pages, row) -> None:
        self._step, self._pages, self._row = step, pages, row
        self._known: dict[tuple[int, ...], Bits] = {}

    def __call__(self, tokens: list[int]) -> Bits:
        key = tuple(tokens)
        if key not in self._known:
            batch = self._pages(N_PAGES, 16).step([(self._row(tokens), len(tokens))], "all")
            self._known[key] = bits(self._step.run(batch).logits)
        return self._known[key]


@pytest.fixture(scope="module", params=ISAS)
def model(request, kit, threads, pages, row) -> Iterator[tuple[NativeStep, Alone]]:
    """A step, and what another one of the same weights says of sequences that are alone."""
    spec = mixed_spec(kit)
    weights = kit.weights(spec, request.param, FORMATS)
    made = [NativeStep(spec, weights, N_PAGES, kit.page, 1024, threads, request.param) for _ in range(2)]
    yield made[0], Alone(made[1], pages, row)
    for step in made:
        step.close()


def bits(logits: NDArray[np.float32]) -> Bits:
    return logits.copy().view(np.uint32)


def prompt(seed: int, n: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 101, n).tolist()


LENGTHS = (3, 17, 64, 65, 130, 200)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_alone_and_in_company_and_in_pieces(model, pages, row, data):
    """Up to 64 rows, each with a random piece of its sequence in every step: decode rows, chunks, whole prompts."""
    step, alone = model
    n_rows = data.draw(st.one_of(st.integers(1, 12), st.just(64)), "rows")
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 20), "seed"))
    lengths = rng.choice(LENGTHS if n_rows <= 12 else LENGTHS[:4], n_rows)
    rows = [row(prompt(int(rng.integers(20)), int(n))) for n in lengths]
    dealt = pages(N_PAGES, 16, int(rng.integers(1 << 20)))
    sizes = rng.choice([1, 1, 1, 2, 5, 16, 47, 64, 200], len(rows))
    while waiting := [i for i, r in enumerate(rows) if r.computed < len(r.tokens)]:
        taken = [i for i in waiting if rng.random() < 0.8] or waiting
        rng.shuffle(taken)
        work = [(rows[i], min(int(sizes[i]), len(rows[i].tokens) - rows[i].computed)) for i in taken]
        begins = [r.computed for r, _ in work]
        found = bits(step.run(dealt.step(work, "all")).logits)
        at = 0
        for (r, n), begin in zip(work, begins, strict=True):
            expected = alone(r.tokens)[begin : begin + n]
            assert np.array_equal(found[at : at + n], expected), (len(rows), len(r.tokens), begin, n)
            at += n
        sizes = np.maximum(1, rng.permutation(sizes))


def test_decode_rows_of_every_number(model, pages, row):
    """M rows of one token each, M = 1 .. 64, at unlike positions."""
    step, alone = model
    dealt, every = pages(N_PAGES, 16, 3), [prompt(i, 8 + 9 * (i % 6)) for i in range(64)]
    rows = [row(tokens) for tokens in every]
    for r in rows:
        step.run(dealt.step([(r, len(r.tokens))]))
    for m in range(1, 65):
        some = [replace(r, computed=r.computed - 1) for r in rows[64 - m :]]
        found = bits(step.run(dealt.step([(r, 1) for r in some])).logits)
        for r, one in zip(some, found, strict=True):
            assert np.array_equal(one, alone(r.tokens)[-1]), m


def test_a_prefix_that_is_there_already(model, pages, row):
    """Pages of another sequence are read, not computed again: as they are, or where a disk put them back."""
    step, alone = model
    tokens, dealt = prompt(1, 130), pages(N_PAGES, 16, 4)
    first = row(tokens)
    step.run(dealt.step([(first, 130)]))
    for shared in (16, 64, 112):
        end = [*tokens[:shared], *prompt(shared, 40)]
        reused = row(end, shared, first.pages[: shared // 16])
        step.pages[200:208] = step.pages[first.pages[:8]]
        copied = row(end, shared, list(range(200, 200 + shared // 16)))
        for again in (reused, copied):
            found = bits(step.run(dealt.step([(again, 40)], "all")).logits)
            assert np.array_equal(found, alone(end)[shared:])


def test_what_an_earlier_owner_left_in_a_page_is_never_seen(model, pages, row):
    """NaN in every bit of every page: half-full blocks of keys and of values are masked, not multiplied."""
    step, alone = model
    tokens = prompt(2, 90)
    expected = alone(tokens)
    for junk in (0xFF, 0x7F):
        step.pages[:] = junk
        for chunk in (1, 7, 90):
            r, dealt, at = row(tokens), pages(N_PAGES, 16, chunk), 0
            while r.computed < 90:
                n = min(chunk, 90 - r.computed)
                found = bits(step.run(dealt.step([(r, n)], "all")).logits)
                assert np.array_equal(found, expected[at : at + n]), (junk, chunk, at)
                at += n


def test_best_is_the_first_of_the_largest(model, pages, row):
    """And where no logits are asked for, none are written."""
    step, _ = model
    batch = pages(N_PAGES, 16).step([(row(prompt(s, 20)), 20) for s in range(5)], "all")
    output = step.run(batch)
    assert output.best.tolist() == output.logits.argmax(1).tolist() and output.finite.all()
    expected, wanted = output.logits.copy(), np.arange(100) % 3 == 0
    output.logits[:] = 7
    again = step.run(replace(batch, full_logits=wanted))
    assert again.best.tolist() == expected.argmax(1).tolist()
    assert np.array_equal(again.logits[wanted], expected[wanted]) and (again.logits[~wanted] == 7).all()


def test_a_broken_embedding_breaks_its_own_row_only(kit, step, pages, row):
    """A scale that is no number, in one token's embedding: its row is said to be broken, its neighbours' bits stay."""
    spec = kit.spec()
    for isa in ISAS:
        weights = kit.weights(spec, isa, {"embed": Format.BF16})
        embed = weights.linears["embed"]
        healthy = step(spec, weights, isa)
        prompts = [[1, 2, 3, 4], [5, 6], [7, 8, 13], list(range(20, 60))]
        expected = bits(healthy.run(pages(64, 16).step([(row(p), len(p)) for p in prompts])).logits)
        codes = embed.codes.view(np.uint16).reshape(-1, 16, 16, 2)  # [panel and group][pair][output][2]
        codes[: spec.hidden // 32, :, 13] = 0x7FC0
        broken = step(spec, weights, isa)
        output = broken.run(pages(64, 16).step([(row(p), len(p)) for p in prompts]))
        # Tied: the head's row 13 is broken too, for everybody.
        assert not np.isfinite(output.logits[2]).any() and not output.finite.any()
        others = np.delete(np.arange(spec.vocab), 13)
        assert np.array_equal(bits(output.logits)[[0, 1, 3]][:, others], expected[[0, 1, 3]][:, others])


# --- threads -------------------------------------------------------------------------------------------------------------


def run_mix(weights: NativeWeights, spec: DecoderSpec, pool: native.Pool, isa: str, pages, row) -> Bits:
    """Logits of a fixed mixture of prompts, chunks and decode rows."""
    step = NativeStep(spec, weights, N_PAGES, 16, 1024, pool, isa)
    try:
        rows, dealt = [row(prompt(i, n)) for i, n in enumerate((130, 40, 1, 75, 17, 33))], pages(N_PAGES, 16, 1)
        found = []
        for size in (30, 1, 2, 64, 200):
            work = [(r, min(size, len(r.tokens) - r.computed)) for r in rows if r.computed < len(r.tokens)]
            found.append(bits(step.run(dealt.step(work, "all")).logits))
        return np.concatenate(found)
    finally:
        step.close()


@contextmanager
def neighbours(n: int) -> Iterator[None]:
    """Processes that want the cores all the time."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("busy", [0, 2])
def test_threads_and_busy_neighbours_change_no_bit(isa, busy, kit, threads, pages, row):
    spec = mixed_spec(kit)
    weights = kit.weights(spec, isa, FORMATS)
    expected = run_mix(weights, spec, threads, isa, pages, row)
    with neighbours(busy):
        for n in (1, 2, 3, 4):
            pool = native.Pool(n)
            try:
                assert np.array_equal(run_mix(weights, spec, pool, isa, pages, row), expected), n
            finally:
                pool.close()


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_a_real_model_too(isa, smollm2, threads, pages, row):
    """SmolLM2: a prompt of 300 tokens whole, in chunks, in company, and after another's prefix."""
    from baseload.runtime.models.model_file import load_model
    from baseload.runtime.models.native_weights import native_weights

    model = load_model(smollm2)
    spec = model.config.decoder
    step = NativeStep(spec, native_weights(model.weights, spec, layout_of(isa)), 64, 32, 1024, threads, isa)
    try:
        ids = model.tokenizer.encode(
            "The tide tables said high water at noon; by eleven the harbour was full. " * 30, specials=False
        )
        tokens = ids[:300]
        dealt = pages(64, 32, 1)
        first = row(tokens)
        expected = bits(step.run(dealt.step([(first, 300)], "all")).logits)
        r, company = row(tokens), [row(ids[7 + i : 100 + i]) for i in range(6)]
        at = 0
        for n in (1, 63, 4, 32, 100, 1, 99):
            work = [(r, n), *((c, int(k)) for c, k in zip(company, (1, 1, 5, 3, 2, 1), strict=True))]
            assert np.array_equal(bits(step.run(dealt.step(work, "all")).logits)[:n], expected[at : at + n]), at
            at += n
        shared = row(tokens, 256, first.pages[:8])
        assert np.array_equal(bits(step.run(dealt.step([(shared, 44)], "all")).logits), expected[256:])
    finally:
        step.close()
