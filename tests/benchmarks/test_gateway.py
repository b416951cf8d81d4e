"""The gateway benchmark, end to end: against stand-ins whose delays are known, and with a real server in the middle."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from baseload.benchmarks import gateway
from baseload.benchmarks.gateway_client import Target, closed_loop
from baseload.benchmarks.stand_in import MODEL, Pace, listen

SMALL = ["--requests", "20", "--clients", "3", "--seconds", "0.3", "--rounds", "1", "--tokens", "4"]


@contextmanager
def standing_in(pace: Pace) -> Iterator[str]:
    """A stand-in in a thread of its own; its address."""
    loop, started = asyncio.new_event_loop(), threading.Event()
    ports: list[int] = []

    async def serve() -> None:
        server = await listen(0, pace)
        ports.append(server.sockets[0].getsockname()[1])
        started.set()
        await stop.wait()
        server.close()

    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert started.wait(10)
    yield f"http://127.0.0.1:{ports[0]}"
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()


@pytest.fixture
def standin() -> Iterator[str]:
    with standing_in(Pace(4)) as url:
        yield url


def test_what_lies_between_is_what_is_added(standin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out.json"
    with standing_in(Pace(4, first_s=0.02)) as slow:
        words = ["--direct", standin, "--baseload", slow, "--baseload-model", MODEL, "--litellm", slow, *SMALL]
        assert gateway.main([*words, "--json", str(out)]) == 0
    said = json.loads(out.read_text())
    assert said["machine"]["cores"] and said["options"]["tokens"] == 4
    for name in ("baseload", "litellm"):
        (run,) = said["runs"][name]
        assert run["whole"]["n"] == run["first"]["n"] == 20
        assert run["whole"]["p50"] >= 0.02 and run["first"]["p50"] >= 0.02
        assert run["whole_rate"] <= 3 / 0.02 and run["stream_rate"] <= 3 / 0.02
    printed = capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in printed.splitlines()[2:5]] == ["direct", "baseload", "litellm"]


def test_a_wrong_answer_ends_the_run(standin: str, capsys: pytest.CaptureFixture[str]):
    with standing_in(Pace(3)) as other:
        assert gateway.main(["--direct", standin, "--baseload", other, "--baseload-model", MODEL, *SMALL]) == 1
    assert "not the answer" in capsys.readouterr().err


def test_nobody_there_ends_the_run(standin: str, capsys: pytest.CaptureFixture[str]):
    assert gateway.main(["--direct", standin, "--baseload", "http://127.0.0.1:1", *SMALL]) == 1
    assert capsys.readouterr().err.startswith("error:")


async def test_a_stream_has_its_words_one_by_one_and_its_usage():
    with standing_in(Pace(4, gap_s=0.01)) as url:
        answers, _ = await closed_loop(Target(url, MODEL), 2, 4, streaming=True, requests=6)
    assert len(answers.whole_s) == len(answers.first_s) == 6 and not answers.errors
    # Three gaps lie between the first word and the last, and one before the end.
    assert all(whole - first >= 0.03 for whole, first in zip(sorted(answers.whole_s), sorted(answers.first_s), strict=True))


def test_it_starts_a_stand_in_and_a_server_by_itself(smollm2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out.json"
    assert gateway.main(["--model", str(smollm2), *SMALL, "--json", str(out)]) == 0
    (run,) = json.loads(out.read_text())["runs"]["baseload"]
    assert run["whole"]["n"] == 20 and set(run["cpu_us"]) == {"client", "stand-in", "server"}
