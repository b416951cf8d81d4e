"""A replay against a server whose every delay is known."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from baseload.benchmarks import replay
from baseload.benchmarks.load_client import Result
from baseload.benchmarks.slo import MLPERF, goodput, parse_tiers, wilson
from baseload.benchmarks.stats import Slo

from .test_traces import MOONCAKE


def sh(fake: Any, tmp_path: Path, *more: str) -> tuple[int, Any]:
    trace, report = tmp_path / "trace.jsonl", tmp_path / "report.json"
    trace.write_text(MOONCAKE)
    words = ["--trace", str(trace), "--url", fake.url, "--model", "m", "--json", str(report), *more]
    status = replay.main(words)
    return status, json.loads(report.read_text())


async def test_arrivals_lengths_and_shared_beginnings_are_the_traces(fake: Any, tmp_path: Path):
    status, report = await asyncio.to_thread(sh, fake, tmp_path, "--speed", "10", "--slo", "mlperf:llama3.1-8b")
    row, asked = report["rows"][0], fake.asked[2:]  # two measure how long words are
    asked.sort(key=lambda body: (-body["max_tokens"], -len(fake.words(body))))  # two were due at once
    assert (status, row["mode"], row["load"], row["cache"], row["ok"]) == (0, "replay", 10, "cold", 3)
    assert row["duration_s"] >= 0.15
    assert [body["max_tokens"] for body in asked] == [50, 5, 5]
    said = [fake.words(body).split() for body in asked]
    assert [len(words) for words in said] == [600, 1100, 512]
    assert said[0] == said[1][:600] and said[2] == said[0][:512]
    assert report["workload"]["shared_tokens"] == 1112 and row["prompt_tokens"] == 2212
    assert [(level["name"], level["good"], level["asked"]) for level in row["levels"]] == [
        ("server", 3, 3),
        ("interactive", 3, 3),
    ]


async def test_the_context_of_the_model_cuts_and_the_cut_is_told(fake: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    _, report = await asyncio.to_thread(sh, fake, tmp_path, "--speed", "100", "--max-context", "600")
    assert (report["workload"]["clamped_inputs"], report["workload"]["clamped_outputs"]) == (2, 0)
    assert all(len(fake.words(body).split()) + body["max_tokens"] <= 600 for body in fake.asked)
    assert "2 prompts and 0 answers of 3" in capsys.readouterr().out


async def test_repetitions_share_no_words_and_warm_rows_have_been_seen(fake: Any, tmp_path: Path):
    page = ["--html", str(tmp_path / "r.html")]
    _, report = await asyncio.to_thread(
        sh, fake, tmp_path, "--speed", "100", "--cache", "cold,warm", "--repeats", "3", "--slo", "ttft=9", *page
    )
    assert "Replaying to m" in (tmp_path / "r.html").read_text()
    assert [(row["cache"], row["repeat"]) for row in report["rows"]] == [(c, n) for n in (1, 2, 3) for c in ("cold", "warm")]
    said = [fake.words(body) for body in fake.asked[2:]]
    cold, before, warm = said[:3], said[3:6], said[6:9]
    assert sorted(before) == sorted(warm) and not set(cold) & set(warm)
    assert not set(said[:9]) & set(said[9:])
    figure = next(one for one in report["figures"] if one["name"] == "replay x100, cold: goodput")
    assert len(figure["values"]) == figure["interval"]["n"] == 3


async def test_a_cold_row_that_a_cache_answered_says_so(fake: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The scripted server says that half of each prompt was cached; the trace shares half as well, this one nothing."""
    trace = tmp_path / "azure.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,4000,10\n")
    assert await asyncio.to_thread(replay.main, ["--trace", str(trace), "--url", fake.url, "--model", "m"]) == 0
    assert "50% came from a cache, more than the 0%" in capsys.readouterr().out


async def test_a_server_that_stalls_cannot_hide_it(fake: Any, tmp_path: Path):
    """One answer at a time, 0.2 s each, under three requests that were due at once: the last has waited for the others."""
    fake.slots, fake.first_s, fake.pieces = 1, 0.2, 1
    _, report = await asyncio.to_thread(sh, fake, tmp_path, "--speed", "1000", "--slo", "ttft=0.3")
    row = report["rows"][0]
    assert row["e2e_s"]["p90"] > 0.4
    assert row["levels"][0]["good"] < 3


def test_levels_by_name_and_of_ones_own():
    server, interactive = parse_tiers("mlperf:llama3.1-8b")
    assert (server.slo, interactive.slo) == (Slo(2.0, 0.1), Slo(0.5, 0.03))
    assert parse_tiers("ttft=1")[0].slo == Slo(ttft=1)
    assert all(two[1].slo.tpot < two[0].slo.tpot for two in MLPERF.values())  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"llama3\.1-8b"):
        parse_tiers("mlperf:gpt-9")


def test_what_failed_is_bad():
    good = Result(0.0, 0.0, ended=1.0, first=0.5, last=1.0, output_tokens=10)
    slow = Result(0.0, 0.0, ended=9.0, first=5.0, last=9.0, output_tokens=10)
    failed = Result(0.0, 0.0, ended=0.1, error="http 500")
    found = goodput(parse_tiers("mlperf:llama3.1-8b")[0], [good, slow, failed], 10.0)
    assert (found.good, found.asked, found.good_per_s, found.good_output_tokens_per_s) == (1, 3, 0.1, 1.0)


def test_wilsons_interval_is_the_textbooks():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 10)[0] == 0 and wilson(0, 10)[1] == pytest.approx(0.2775, abs=1e-4)
