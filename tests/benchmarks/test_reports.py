"""Reports as files: every one fits the schema, two of a kind can be compared, and pages need nothing but themselves."""

import asyncio
import json
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from baseload.benchmarks import boxes, diff
from baseload.benchmarks.engine_speed import Cell, fits, measure, output_tokens
from baseload.benchmarks.figures import Figure, difference, interval
from baseload.benchmarks.hardware import Report, best, doubts, metered, priced
from baseload.benchmarks.hardware_page import page
from baseload.benchmarks.load_test import Options, run
from baseload.benchmarks.machine import describe, versions
from baseload.benchmarks.report_file import check, read, save
from baseload.benchmarks.server_cost import SleepingRunner
from baseload.benchmarks.slo import parse_tiers
from baseload.benchmarks.utilisation import Mix, beside, cost
from baseload.cli.main import build
from baseload.ledger.machine_cost import load, usd_per_hour
from baseload.ledger.meters import Reading
from baseload.runtime.engine import Engine, EngineConfig
from baseload.runtime.models.model_file import load_model

PROFILE = Path(__file__).parents[2] / "configs" / "hardware" / "example-workstation.toml"


def cells(faster: float = 1.0, repeats: int = 3) -> list[Cell]:
    return [
        Cell(b, c, n, 1.0, 1000.0 * faster + n, 1.0, 100.0 * b * faster + n, 0, "cold", 0.5)
        for n in range(1, repeats + 1)
        for b in (1, 8)
        for c in (128, 2048)
    ]


def box(faster: float = 1.0, repeats: int = 3, profile: bool = True) -> dict[str, Any]:
    measured = cells(faster, repeats)
    money = priced(measured, load(PROFILE), Mix(1000, 100), ["openai/gpt-4o-mini", "nobody/nothing"]) if profile else None
    model = {"name": "m"}
    limits = {"read_bytes_per_s": 3e10, "operations_per_s": 1e12, "kind": "int8", "isa": "avx2"}
    linear = [{"format": "4-bit", "rows": 1, "seconds": 1e-3, "nbytes": 9, "operations": 9, "least_s": 1e-4, "share": 0.1}]
    steps = {"decode 1 x 160": {"attention": 0.2, "head": 1.0}}
    return Report(
        "baseload bench hardware <&>",
        "2026-11-25T12:00:00+00:00",
        versions(),
        describe(),
        model,
        {},
        limits,
        linear,
        steps,
        measured,
        ["32 x 8192"],
        money,
        doubts(measured),
    ).value()


# ------------------------------------------------------------------------------------------------------------ figures


def test_an_interval_wants_three_runs_and_is_students():
    assert interval([1.0, 2.0]) is None
    found = interval([9.0, 10.0, 11.0])
    assert found and (found.low, found.high) == pytest.approx((7.516, 12.484), abs=1e-3)  # 4.3027 / sqrt(3)


RUNS = st.lists(st.floats(0.1, 1e6), min_size=1, max_size=6).map(tuple)


@given(RUNS, RUNS)
def test_a_difference_is_called_one_only_where_its_interval_leaves_zero_out(a: tuple[float, ...], b: tuple[float, ...]):
    found = difference(Figure("x", "s", "less", a), Figure("x", "s", "less", b))
    if min(len(a), len(b)) < 3:
        assert found.low is None and "not known" in found.verdict
        return
    assert found.low is not None and found.high is not None and found.change is not None
    assert found.low - 1e-9 <= found.change <= found.high + 1e-9
    assert (found.verdict == "no difference seen") == (found.low <= 0 <= found.high)
    assert found.verdict != "better" or found.b < found.a


def test_the_same_change_is_better_or_worse_by_the_figures_sense():
    a, b = (10.0, 10.1, 9.9), (20.0, 20.2, 19.8)
    assert difference(Figure("x", "tokens/s", "more", a), Figure("x", "tokens/s", "more", b)).verdict == "better"
    assert difference(Figure("x", "s", "less", a), Figure("x", "s", "less", b)).verdict == "worse"


# ------------------------------------------------------------------------------------------------------ files and diff


def test_a_report_that_does_not_fit_is_neither_written_nor_read(tmp_path: Path):
    good, file = box(), tmp_path / "r.json"
    save(file, good)
    assert read(file)["cells"] == good["cells"]
    with pytest.raises(ValueError, match="cells/0/cache"):
        save(tmp_path / "bad.json", {**good, "cells": [{**good["cells"][0], "cache": "tepid"}]})
    assert not (tmp_path / "bad.json").exists()
    file.write_text('{"schema": "somebody.else/1"}')
    with pytest.raises(ValueError, match=r"r\.json: no report of a known kind"):
        read(file)


def test_a_99th_percentile_of_few_values_and_an_interval_of_two_runs_fit_no_schema():
    good = box()
    two = {**good["figures"][0], "values": [1.0, 2.0], "interval": {"mean": 1.5, "low": 1, "high": 2, "n": 3}}
    with pytest.raises(ValueError, match="figures/0/interval"):
        check({**good, "figures": [two]})


async def test_every_row_of_a_load_fits_and_p99_needs_a_hundred(fake: Any, tmp_path: Path):
    o = Options(fake.url, "m", concurrency=(4,), requests=100, warmup=0, input_tokens=5, output_tokens=2, salt="s")
    report = (await run(o)).value()
    save(tmp_path / "r.json", report)
    assert report["rows"][0]["ttft_s"]["p99"] is not None
    row = {**report["rows"][0], "ttft_s": {**report["rows"][0]["ttft_s"], "n": 99}}
    with pytest.raises(ValueError, match="rows/0/ttft_s/p99"):
        check({**report, "rows": [row]})


async def test_repetitions_are_salted_in_turns_and_have_an_interval(fake: Any):
    common: dict[str, Any] = {"requests": 2, "concurrency": (1, 2), "warmup": 0, "input_tokens": 10, "output_tokens": 4}
    report = await run(Options(fake.url, "m", salt="s", repeats=3, tiers=parse_tiers("ttft=60"), **common))
    assert [(row.load, row.repeat) for row in report.rows] == [(1, 1), (2, 1), (1, 2), (2, 2), (1, 3), (2, 3)]
    said = [fake.words(body) for body in fake.asked]
    assert len(set(said)) == len(said) == 12
    assert all(figure["interval"]["n"] == 3 for figure in report.value()["figures"])
    with pytest.raises(ValueError, match="cache"):
        Options(fake.url, "m", salt="", repeats=2)


def test_diff_compares_boxes_and_says_what_else_is_unlike(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    save(a, box())
    save(b, {**box(2.0), "model": {"name": "other"}})
    assert diff.main([str(a), str(b), "--json", str(tmp_path / "d.json")]) == 0
    said = capsys.readouterr().out
    assert "model.name: m against other" in said and "better" in said
    found = {one["name"]: one for one in json.loads((tmp_path / "d.json").read_text())["differences"]}
    assert found["8 x 128: write"]["verdict"] == "better" and found["8 x 128: write"]["change"] == pytest.approx(1.0, abs=0.01)
    assert "not known" in found["ceiling: read"]["verdict"]


async def test_diff_refuses_reports_of_different_kinds(fake: Any, tmp_path: Path):
    load_report = await run(Options(fake.url, "m", concurrency=(1,), requests=1, warmup=0, salt="s"))
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    save(a, box())
    save(b, load_report.value())
    done = await asyncio.to_thread(CliRunner().invoke, build("bench"), ["bench", "diff", str(a), str(b)])
    assert done.exit_code == 2 and "not the same kind" in " ".join(done.output.split())


# ---------------------------------------------------------------------------------------------------- money and pages


def test_dollars_are_the_hours_over_the_work_and_the_parts_sum():
    mix = Mix(1000, 100)
    own = cost(mix, 0.36, read_tokens_per_s=1000, write_tokens_per_s=50)  # 1 s to read, 2 s to write: 1,200 requests an hour
    assert own.requests_per_hour == pytest.approx(1200)
    assert own.usd_per_mtok["1.0"] == pytest.approx(0.36 / (1200 * 1100) * 1e6)
    assert own.usd_per_mtok["0.1"] == pytest.approx(10 * own.usd_per_mtok["1.0"])
    parts = own.input_usd_per_mtok * 1000 + own.output_usd_per_mtok * 100
    assert parts == pytest.approx(own.usd_per_mtok["1.0"] * 1100)


def test_break_even_is_where_the_line_crosses_the_list_price():
    mix = Mix(1000, 100)
    own = cost(mix, 0.36, 1000, 50)
    (one,), unpriced = beside(mix, own, ["openai/gpt-4o-mini", "nobody/nothing"])
    assert unpriced == ["nobody/nothing"]
    assert one.usd_per_mtok == pytest.approx((1000 * 0.15 + 100 * 0.6) / 1100)
    assert own.usd_per_mtok["1.0"] / one.break_even == pytest.approx(one.usd_per_mtok)


def test_without_a_known_power_there_are_no_dollars():
    from dataclasses import replace

    profile = load(PROFILE)
    assert usd_per_hour(profile).value is not None
    assert priced(cells(), replace(profile, watts=None), Mix(10, 10), []) is None


def test_watts_that_were_measured_go_before_the_profiles():
    from dataclasses import replace

    profile = load(PROFILE)
    metered = [replace(cell, watts=50.0 + cell.repeat) for cell in cells()]
    found = priced(metered, replace(profile, watts=None), Mix(1000, 100), [])
    assert found and (found.watts.value, found.watts.known) == (52.0, "measured")
    assert found.usd_per_hour.value == pytest.approx(usd_per_hour(profile, found.watts).value)
    assert found.joules_per_output_token == pytest.approx(52.0 / best(metered, 1000)[2])


def test_meters_are_added_up_and_one_that_cannot_tell_leaves_all_unknown():
    class Fixed:
        source = "a meter"

        def __init__(self, joules: float | None) -> None:
            self.joules = joules

        def read(self) -> Reading:
            if self.joules == -1:
                raise OSError("gone")
            return Reading(self.joules, None)

    assert metered([Fixed(2.0), Fixed(3.0)])() == 5.0
    assert metered([Fixed(2.0), Fixed(None)])() is metered([Fixed(-1)])() is metered([])() is None


def test_the_priced_rates_are_those_of_the_context_that_holds_the_request():
    assert best(cells(), 1000)[0] == "8 x 2048" and best(cells(), 100)[0] == "8 x 128" and best(cells(), 9999)[0] == "8 x 2048"


class Links(HTMLParser):
    """Every address that a page refers to, and its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [tag] if tag in ("script", "link", "iframe", "img") else []
        self.found += [str(value) for name, value in attrs if name in ("src", "href") and value]


def test_pages_of_boxes_need_nothing_but_themselves(tmp_path: Path):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    save(files[0], box())
    save(files[1], box(0.5, repeats=1, profile=False))
    assert boxes.main([*map(str, files), "--html", str(tmp_path / "p.html")]) == 0
    text = (tmp_path / "p.html").read_text()
    assert Links(text).found == [] and "@import" not in text and "url(" not in text
    assert "prefers-color-scheme:dark" in text
    assert "too few runs" in text and "not known" in text and "unpriced" in text and "32 x 8192" in text
    assert "hardware &lt;&amp;&gt;" in text and page([box()]).count("<svg") == 4


# ---------------------------------------------------------------------------------------------------------- the engine


@pytest.fixture
def sleeping(smollm2: Path) -> Any:
    """An engine whose steps take 2 ms and compute nothing."""
    model = load_model(smollm2)
    runner = SleepingRunner(model.config.decoder.vocab, 0.002, 500)
    engine = Engine(runner, model.tokenizer, EngineConfig(n_pages=512, max_guess=0))
    engine.start()
    yield engine, model.config.decoder.vocab
    engine.close()


def test_a_cell_counts_what_all_sequences_bring(sleeping: Any):
    engine, vocab = sleeping
    found = asyncio.run(measure(engine, vocab, 4, 600, 1))
    # 2,400 tokens in steps of 512 are five steps of 2 ms or more; four tokens come from each step after that.
    assert 0 < found.read_tokens_per_s <= 2400 / 0.01
    assert 0 < found.write_tokens_per_s <= 4 / 0.002 * 1.05
    assert (found.cache, found.name, found.watts) == ("cold", "4 x 600", None)
    begun = time.perf_counter()
    metered = asyncio.run(measure(engine, vocab, 1, 10, 1, lambda: 40.0 * (time.perf_counter() - begun)))
    assert metered.watts == pytest.approx(40.0, rel=0.2)


@given(st.integers(1, 64), st.integers(1, 4000))
def test_answers_are_long_enough_that_the_first_still_writes_when_the_last_begins(batch: int, context: int):
    config = EngineConfig()
    steps_to_read = int(np.ceil(batch * context / (config.token_budget - batch)))
    assert output_tokens(batch, context, config) >= steps_to_read + 32


def test_what_does_not_fit_is_left_out(smollm2: Path):
    from baseload.runtime.loading import Loader, LoadOptions

    loader = Loader(LoadOptions(EngineConfig(), kv_memory_mb=64))
    opened = loader.open(smollm2)
    assert fits(1, 128, opened) and not fits(32, 4096, opened) and not fits(65, 16, opened)
    loader.close()
