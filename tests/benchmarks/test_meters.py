"""Other meters as programs: what they are asked for, how they are read, and what is said when one fails."""

import asyncio
import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from baseload.benchmarks import meters
from baseload.benchmarks.meters import Reading, table

AIPERF = """
import json, os, sys
words = sys.argv[1:]
value = lambda name: words[words.index(name) + 1]
assert "HF_HUB_OFFLINE" not in os.environ and words[0] == "profile" and "--streaming" in words
n = int(value("--request-count"))
said = {"time_to_first_token": {"p50": 110.0}, "inter_token_latency": {"p50": 11.0}, "request_latency": {"p50": 1100.0}}
said |= {"output_token_throughput": {"avg": 90.0}, "request_count": {"avg": n - LOST}}
open(value("--output-artifact-dir") + "/profile_export_aiperf.json", "w").write(json.dumps(said))
"""
GUIDELLM = """
import json, os, sys
words = sys.argv[1:]
value = lambda name: words[words.index(name) + 1]
assert os.environ["HF_HUB_OFFLINE"] == "1" and words[0] == "run"
assert value("--data") == "kind=synthetic_text,prompt_tokens=10,output_tokens=4"
n = int(value("--constraint").rpartition("=")[2])
of = lambda x: {"successful": {"median": x, "mean": x}}
said = {"time_to_first_token_ms": of(100.0), "inter_token_latency_ms": of(10.0), "request_latency": of(1.0)}
said |= {"output_tokens_per_second": of(100.0), "request_totals": {"successful": n}}
path = value("--output").rpartition("path=")[2]
open(path, "w").write(json.dumps({"benchmarks": [{"metrics": said}]}))
"""


def program(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(f"#!{sys.executable} -I\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


async def sh(fake: Any, folder: Path, *more: str) -> int:
    few = ["--clients", "2", "--requests", "4", "--input-tokens", "10", "--output-tokens", "4", "--rounds", "2"]
    return await asyncio.to_thread(meters.main, ["--url", fake.url, "--model", "m", "--tokenizer", str(folder), *few, *more])


async def test_all_three_are_asked_for_the_same_and_read(fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fake.gap_s = 0.005
    words = ["--aiperf", program(tmp_path, "aiperf", AIPERF.replace("LOST", "0")), "--json", str(tmp_path / "m.json")]
    assert await sh(fake, tmp_path, *words, "--guidellm", program(tmp_path, "guidellm", GUIDELLM)) == 0
    found = json.loads((tmp_path / "m.json").read_text())["readings"]
    assert [len(readings) for readings in found.values()] == [2, 2, 2]
    assert found["aiperf"][0]["ttft_ms"] == 110.0 and found["aiperf"][0]["answer_s"] == 1.1
    assert found["guidellm"][1]["tokens_per_s"] == 100.0
    assert found["baseload"][0]["per_token_ms"] >= 4.5


@pytest.mark.parametrize(
    ("text", "words"),
    [(AIPERF.replace("LOST", "1"), "3 of 4 answered"), ("raise SystemExit('no such model')", "no such model")],
)
async def test_a_meter_that_fails_is_told_and_compares_nothing(
    fake: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
):
    assert await sh(fake, tmp_path, "--aiperf", program(tmp_path, "aiperf", text)) == 1
    assert words in capsys.readouterr().err


def test_the_table_is_of_medians_beside_ours():
    def of(*rates: float) -> list[Reading]:
        return [Reading(100.0, 10.0, 1.0, rate, None) for rate in rates]

    ours, theirs = table({"baseload": of(90, 100, 120), "aiperf": of(104, 105, 106)})
    assert ours[-1] == "100 (90 to 120)" and theirs[-1] == "105 (104 to 106), +5.0%"
