"""The load test against a server whose every delay and token is known."""

import asyncio
import base64
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from baseload.benchmarks import serving
from baseload.benchmarks.load_test import Options, run
from baseload.benchmarks.machine import Watch, Watched, find_server
from baseload.benchmarks.report import SCHEMA
from baseload.benchmarks.stats import Slo
from baseload.cli.main import build


def options(fake: Any, **more: Any) -> Options:
    common: dict[str, Any] = {"requests": 6, "concurrency": (2,), "warmup": 0, "input_tokens": 10, "output_tokens": 4}
    return Options(**{"url": fake.url, "model": "m", "salt": "s", **common, **more})


# ------------------------------------------------------------------------------------------------------ what is sent


async def test_what_is_sent_is_what_was_asked_for(fake: Any):
    await run(options(fake, requests=3, api_key="sk-1"))
    for body in fake.asked:
        assert body["model"] == "m" and body["stream"] is True and body["stream_options"] == {"include_usage": True}
        assert (body["max_tokens"], body["temperature"], body["ignore_eos"]) == (4, 0.0, True)
        assert len(body["messages"][0]["content"].split()) == 10
    assert set(fake.keys) == {"Bearer sk-1"}


async def test_completions_get_a_prompt_and_servers_that_do_not_know_ignore_eos_are_spared(fake: Any):
    report = await run(options(fake, endpoint="completions", ignore_eos=False))
    assert report.rows[0].ok == 6 and report.rows[0].output_tokens == 24
    assert all("prompt" in body and "messages" not in body and "ignore_eos" not in body for body in fake.asked)


async def test_the_url_may_end_in_v1(fake: Any):
    report = await run(options(fake, url=f"{fake.url}/v1/"))
    assert report.rows[0].ok == 6


async def test_no_prompt_comes_twice_in_a_run_nor_in_the_next_run_unless_unsalted(fake: Any):
    def drain() -> list[str]:
        said = [fake.words(body) for body in fake.asked]
        fake.asked.clear()
        return said

    both = {"concurrency": (1, 2), "rates": (500.0,)}
    await run(options(fake, **both))
    first = drain()
    assert len(set(first)) == 18
    await run(options(fake, **both, salt="other"))
    assert not set(first) & set(drain())
    await run(options(fake, **both))
    assert Counter(drain()) == Counter(first)
    report = await run(options(fake, salt="", concurrency=(1,)))
    unsalted = drain()
    await run(options(fake, salt="", concurrency=(1,)))
    assert drain() == unsalted
    assert {row.cache for row in report.rows} == {"unsalted"}


async def test_prompts_from_a_file_go_round_each_with_words_of_its_own(fake: Any, tmp_path: Path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "Say hi.", "max_tokens": 3}\n\n{"messages": [{"role": "user", "content": "Say ho."}]}\n')
    await run(options(fake, prompts=file, requests=4, concurrency=(1,)))
    said = [fake.words(body) for body in fake.asked]
    assert [words.split()[-1] for words in said] == ["hi.", "ho.", "hi.", "ho."] and len(set(said)) == 4
    assert [body["max_tokens"] for body in fake.asked] == [3, 4, 3, 4]
    fake.asked.clear()
    await run(options(fake, prompts=file, requests=2, concurrency=(1,), salt=""))
    assert [fake.words(body) for body in fake.asked] == ["Say hi.", "Say ho."]


# ---------------------------------------------------------------------------------------------------- what is counted


async def test_counts_and_rates_add_up(fake: Any):
    fake.pieces, fake.tokens_per_piece = 5, 2
    row = (await run(options(fake))).rows[0]
    assert (row.mode, row.load, row.cache, row.requests, row.ok, row.errors) == ("closed", 2, "cold", 6, 6, {})
    assert (row.prompt_tokens, row.output_tokens, row.cached_tokens, row.tokens_from) == (60, 60, 30, "usage")
    assert row.output_tokens_per_s == pytest.approx(60 / row.duration_s)
    assert row.total_tokens_per_s == pytest.approx(120 / row.duration_s)
    assert row.requests_per_s == pytest.approx(6 / row.duration_s)
    assert (row.ttft_s.n, row.tpot_s.n, row.itl_s.n, row.e2e_s.n) == (6, 6, 6 * 4, 6)
    assert row.goodput_per_s is None and row.slo_met is None


async def test_without_usage_pieces_are_counted_and_the_row_says_so(fake: Any):
    fake.usage, fake.pieces, fake.tokens_per_piece = False, 3, 2
    row = (await run(options(fake))).rows[0]
    assert (row.output_tokens, row.tokens_from, row.prompt_tokens, row.total_tokens_per_s) == (18, "chunks", None, None)


async def test_latencies_are_at_least_the_servers_delays(fake: Any):
    fake.first_s, fake.gap_s, fake.pieces = 0.06, 0.02, 4
    row = (await run(options(fake, requests=3))).rows[0]
    assert row.ttft_s.p50 and row.ttft_s.p50 >= 0.06
    assert row.tpot_s.p50 and row.tpot_s.p50 >= 0.018
    assert row.itl_s.p50 and row.itl_s.p50 >= 0.018
    assert row.e2e_s.p50 and row.e2e_s.p50 >= 0.12
    assert row.e2e_s.p50 >= row.ttft_s.p50 + 3 * 0.018


async def test_a_closed_loop_keeps_its_clients_and_no_more(fake: Any):
    fake.first_s = 0.02
    await run(options(fake, concurrency=(3,), requests=12))
    assert fake.most == 3 and len(fake.asked) == 12


async def test_a_duration_ends_the_sending(fake: Any):
    fake.first_s = 0.01
    row = (await run(options(fake, duration_s=0.2, requests=1))).rows[0]
    assert row.ok == row.requests > 2
    assert row.duration_s > 0.19  # from the first sending, a little after the clock that ends it was started


async def test_an_open_loop_sends_on_however_busy_the_server_is_and_counts_from_the_due_time(fake: Any):
    """A server that makes one answer at a time, in 50 ms, under 200 requests a second: the last one has waited for all."""
    fake.slots, fake.first_s, fake.pieces = 1, 0.05, 1
    row = (await run(options(fake, concurrency=(), rates=(200.0,), requests=10))).rows[0]
    assert (row.mode, row.load, row.ok) == ("open", 200, 10)
    assert fake.most == 1
    # Service alone takes 10 x 50 ms; the requests were due within about 50 ms. A client that waited for each answer before it
    # sent the next, and counted from then, would report 50 ms for all of them.
    assert row.e2e_s.p90 and row.e2e_s.p90 > 0.25
    assert row.ttft_s.p90 and row.ttft_s.p90 > 0.25


async def test_warm_up_counts_nowhere(fake: Any):
    row = (await run(options(fake, warmup=3))).rows[0]
    assert row.requests == 6 and len(fake.asked) == 9


async def test_goodput_counts_what_keeps_the_slo(fake: Any):
    fake.first_s = 0.05
    strict = (await run(options(fake, slo=Slo(ttft=0.01)))).rows[0]
    assert (strict.ok, strict.goodput_per_s, strict.slo_met) == (6, 0.0, 0.0)
    loose = (await run(options(fake, slo=Slo(ttft=30, e2e=60)))).rows[0]
    assert loose.goodput_per_s == loose.requests_per_s and loose.slo_met == 1.0


async def test_requests_that_failed_keep_no_slo(fake: Any):
    fake.status = [500, 429, 200, 200]
    row = (await run(options(fake, requests=4, slo=Slo(e2e=60)))).rows[0]
    assert (row.ok, row.slo_met) == (2, 0.5)


# ------------------------------------------------------------------------------------------------------------- errors


async def test_errors_are_told_apart_and_429_is_counted(fake: Any):
    fake.status = [429, 429, 500, 503, 200, 200]
    row = (await run(options(fake))).rows[0]
    assert row.errors == {"http 429": 2, "http 500": 1, "http 503": 1}
    assert (row.http_429, row.ok, row.requests, row.ttft_s.n) == (2, 2, 6, 2)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("cut", "cut short"),
        ("no finish", "cut short"),
        ("error event", "error event"),
        ("garbage", "bad stream"),
        ("reset", "connection lost"),
        ("hang", "timeout"),
    ],
)
async def test_a_stream_that_goes_wrong_is_no_answer(fake: Any, fault: str, kind: str):
    fake.fault = fault
    row = (await run(options(fake, requests=2, timeout_s=0.3 if fault == "hang" else 30.0))).rows[0]
    assert (row.ok, row.errors, row.output_tokens) == (0, {kind: 2}, 0)
    assert row.e2e_s.p50 is None


async def test_a_server_that_is_not_there_is_an_error_not_an_exception():
    report = await run(Options(url="http://127.0.0.1:9", model="m", requests=2, concurrency=(1,), warmup=0))
    assert report.rows[0].errors == {"connect": 2}
    assert report.server["model_info"] is None


# ------------------------------------------------------------------------------------------------------- prefix cache


async def test_a_shared_prefix_is_measured_cold_and_warm(fake: Any):
    report = await run(options(fake, shared_prefix_tokens=50, prefixes=3, requests=6))
    cold, warm, loop = report.rows
    assert [(row.mode, row.cache, row.requests) for row in report.rows] == [
        ("prefix", "cold", 3),
        ("prefix", "warm", 3),
        ("closed", "warm", 6),
    ]
    said = [fake.words(body).split() for body in fake.asked]
    assert all(len(words) == 60 for words in said)
    heads = [tuple(words[:50]) for words in said]
    assert heads[:3] == heads[3:6] and len(set(heads)) == 3
    assert set(heads[6:]) == set(heads[:6]), "the closed loop asks with prefixes that are warm"
    assert len({tuple(words[50:]) for words in said}) == 12, "only the prefix is shared"
    assert cold.ttft_s.p50 and warm.ttft_s.p50 and loop.ok == 6
    assert report.prefix_ttft_ratio == pytest.approx(warm.ttft_s.p50 / cold.ttft_s.p50)


# ------------------------------------------------------------------------------------------------------- the machine


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (Watched(0.2, 0.7, 0.02, 0.001), []),
        (Watched(0.95, 0.1, 0.02, 0.001), ["client is the bottleneck"]),
        (Watched(0.2, 0.7, 0.02, 0.2), ["client's clock is late"]),
        (Watched(0.2, 0.3, 0.4, 0.001), ["host is noisy"]),
        (Watched(0.2, None, None, 0.001), []),
    ],
)
def test_doubtful_rows_are_flagged(seen: Watched, words: list[str]):
    flags = seen.flags()
    assert len(flags) == len(words) and all(word in flag for word, flag in zip(words, flags, strict=True))


async def test_a_blocked_event_loop_and_a_busy_client_are_seen():
    async with Watch(None, local=False) as watch:
        for _ in range(4):
            await asyncio.sleep(0.03)
            ends = asyncio.get_running_loop().time() + 0.1
            while asyncio.get_running_loop().time() < ends:
                pass
    assert watch.seen.loop_late_p99_s > 0.03
    assert watch.seen.client_cpu > 0.2
    assert watch.seen.server_cpu is None and watch.seen.others_cpu is not None


async def test_the_server_is_found_by_its_port(fake: Any):
    found = find_server(int(fake.url.rpartition(":")[2]))
    assert found is not None and found.pid == os.getpid()
    fake.first_s = 0.3
    brief, long = (await run(options(fake, requests=2, concurrency=(2, 1)))).rows
    assert brief.seen and brief.seen.server_cpu is not None and brief.seen.others_cpu is None, "too short to tell"
    assert long.seen and long.seen.others_cpu is not None


# ------------------------------------------------------------------------------------------------- the report, written


async def test_the_json_report_says_all_one_needs_to_repeat_it(fake: Any):
    fake.status = [429]
    report = await run(options(fake, rates=(500.0,), slo=Slo(ttft=1), api_key="sk-secret"), "baseload bench serving --x")
    value = json.loads(report.json())
    assert "sk-secret" not in report.json()
    assert value["schema"] == SCHEMA and value["command"] == "baseload bench serving --x"
    assert set(value["machine"]) >= {"cpu", "cores", "memory_bytes", "python", "platform"}
    assert set(value["versions"]) >= {"baseload", "aiohttp"}
    assert value["server"]["url"] == f"{fake.url}/v1" and value["server"]["model_info"]["max_model_len"] == 8192
    assert value["workload"]["input_tokens"] == 10 and value["workload"]["slo"] == {"ttft": 1, "tpot": None, "e2e": None}
    closed, opened = value["rows"]
    assert (closed["mode"], opened["mode"]) == ("closed", "open")
    assert closed["errors"] == {"http 429": 1}
    assert set(closed["ttft_s"]) == {"n", "mean", "p50", "p90", "p99"} and closed["ttft_s"]["p99"] is None


def sh(fake_url: str, *more: str) -> int:
    few = ["--requests", "3", "--concurrency", "1,2", "--input-tokens", "5", "--output-tokens", "4", "--warmup", "0"]
    return serving.main(["--url", fake_url, "--model", "m", *few, *more])


async def test_the_command_writes_table_json_page_and_picture(
    fake: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SOME_KEY", "sk-9")
    files = {name: tmp_path / f"r.{name}" for name in ("json", "html", "png")}
    words = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    status = await asyncio.to_thread(sh, fake.url, *words, "--rate", "200", "--slo", "e2e=20", "--api-key-env", "SOME_KEY")
    said = capsys.readouterr()
    assert status == 0
    assert "TTFT p50 ms" in said.out and "1 client " in said.out and "2 clients" in said.out and "200/s" in said.out
    assert "fewer than 100 values" in said.out and "was due" in said.out
    assert "closed 1 cold: 3 of 3 answered" in said.err
    value = json.loads(files["json"].read_text())
    assert value["command"].startswith("baseload bench serving --url http") and len(value["rows"]) == 3
    assert set(fake.keys) == {"Bearer sk-9"}
    png = files["png"].read_bytes()
    assert png.startswith(b"\x89PNG")
    page = files["html"].read_text()
    assert base64.b64encode(png).decode() in page and "2 clients" in page
    assert "http-equiv" not in page and 'src="http' not in page and "<script" not in page


async def test_the_command_fails_if_nothing_was_answered(fake: Any, capsys: pytest.CaptureFixture[str]):
    fake.status = [500] * 10
    assert await asyncio.to_thread(sh, fake.url) == 1
    assert "3 x http 500" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["--endpoint", "images"],
        ["--concurrency", "two"],
        ["--concurrency", "0"],
        ["--rate", "-1"],
        ["--slo", "speed=1"],
        ["--requests", "0"],
        ["--prompts", "/nowhere/prompts.jsonl"],
    ],
)
def test_wrong_words_are_usage_errors(words: list[str]):
    done = CliRunner().invoke(build("bench"), ["bench", "serving", *words])
    assert done.exit_code == 2 and "Traceback" not in done.output


def test_matplotlib_is_loaded_only_for_a_picture():
    code = "import sys, baseload.benchmarks.serving; print('matplotlib' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
