"""vLLM's supervisor over a real child process, which stands in for vLLM: starts, ends, restarts, and what is left behind."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from baseload.runtime import vllm_backend
from baseload.runtime.child import Child
from baseload.runtime.vllm_backend import Vllm, VllmOptions, child_env
from baseload.runtime.wall_share import WallShare
from baseload.wire.chat import ChatRequest, Event, Failure, Finish, Message, SamplingParams, Text, TextDelta, Usage
from baseload.wire.egress import Egress, EgressRecord
from baseload.wire.errors import ModelFileError

STAND_IN = Path(__file__).parents[1] / "vllm_stand_in.py"


async def unasked(record: EgressRecord) -> None:
    raise AssertionError(f"the child is on loopback: {record}")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in's folder, with the stand-in as its `python`."""
    program = tmp_path / "python"
    program.write_text(STAND_IN.read_text().replace("/usr/bin/env python3", sys.executable, 1))
    program.chmod(0o755)
    monkeypatch.setenv("STAND_IN", str(tmp_path))
    monkeypatch.setattr(vllm_backend, "FIRST_PAUSE_S", 0.05)
    return tmp_path


def options(place: Path) -> VllmOptions:
    return VllmOptions(place / "python", "/models/tiny", "tiny", ("--max-model-len", "2048"), start_s=60, grace_s=2)


@pytest.fixture
async def vllm(place: Path) -> AsyncIterator[Vllm]:
    """A healthy one."""
    found = await Vllm.open(options(place), Egress(frozenset(), unasked, air_gap=True), WallShare())
    yield found
    await found.close()


async def ask(vllm: Vllm, n: int = 4, **fields: object) -> list[Event]:
    request = ChatRequest("tiny", (Message("user", (Text("count"),)),), sampling=SamplingParams(max_tokens=n))
    async with aclosing(vllm.pool.generate(request)) as events:
        return [event async for event in events]


def pids(place: Path) -> list[int]:
    return [int(pid) for pid in (place / "pids").read_text().split()]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def until(true, timeout_s: float = 30) -> None:
    async with asyncio.timeout(timeout_s):
        while not true():
            await asyncio.sleep(0.02)


async def test_it_answers_as_any_backend(vllm: Vllm, place: Path):
    [info] = vllm.pool.models
    assert (info.id, info.context_length, info.local) == ("tiny", 2048, True)
    events = await ask(vllm, 3)
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == "0 1 2 "
    assert isinstance(events[-1], Finish)
    [usage] = [e for e in events if isinstance(e, Usage)]
    assert (usage.prompt_tokens, usage.completion_tokens) == (7, 3) and usage.device_seconds and usage.device_seconds > 0.03
    assert b"vllm:num_requests_running" in (await vllm.metrics() or b"")


async def test_a_plain_prompt_goes_as_it_is(vllm: Vllm):
    request = ChatRequest("tiny", prompt=(1, 2, 3), sampling=SamplingParams(max_tokens=2))
    async with aclosing(vllm.pool.generate(request)) as events:
        assert [e.text async for e in events if isinstance(e, TextDelta)] == ["0 ", "1 "]


async def test_the_child_is_told_to_reach_nobody_and_gets_no_secrets(place: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("ACME_API_KEY", "HF_TOKEN", "PYTHONPATH", "BASELOAD_HOME"):
        monkeypatch.setenv(name, "mine")
    vllm = await Vllm.open(options(place), Egress(frozenset(), unasked), WallShare())
    await vllm.close()
    env = json.loads((place / "env").read_text())
    assert not {"ACME_API_KEY", "HF_TOKEN", "PYTHONPATH", "BASELOAD_HOME"} & set(env)
    assert {env[n] for n in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK")} == {"1"}
    assert env["ARGV"].startswith("--model /models/tiny --served-model-name tiny --host 127.0.0.1 --port ")
    assert len(env["VLLM_API_KEY"]) == 32
    assert child_env({"CUDA_VISIBLE_DEVICES": "1"}, "k")["CUDA_VISIBLE_DEVICES"] == "1"


async def test_killed_under_load_it_comes_back_and_what_had_not_begun_is_answered(vllm: Vllm, place: Path):
    heard: list[list[Event]] = [[] for _ in range(12)]

    async def listen(n: int) -> None:
        request = ChatRequest("tiny", (Message("user", (Text("count"),)),), sampling=SamplingParams(max_tokens=20))
        async with aclosing(vllm.pool.generate(request)) as events:
            async for event in events:
                heard[n].append(event)

    tasks = [asyncio.create_task(listen(n)) for n in range(12)]
    await until(lambda: sum(map(bool, heard)) == 4)  # as many as it answers at once
    first = pids(place)
    os.kill(first[0], signal.SIGKILL)
    await asyncio.wait_for(asyncio.gather(*tasks), 60)
    failed = [events for events in heard if isinstance(events[-1], Failure)]
    assert len(failed) == 4 and all(isinstance(events[0], TextDelta) for events in failed)
    whole = [events for events in heard if isinstance(events[-1], Finish)]
    assert len(whole) == 8 and all(sum(isinstance(e, TextDelta) for e in events) == 20 for events in whole)
    assert vllm.restarts == 1 and vllm.pool.retries == 8
    await until(lambda: not any(map(lives, first)))
    assert not set(first) & set(pids(place))


async def test_close_leaves_nothing_behind(place: Path):
    vllm = await Vllm.open(options(place), Egress(frozenset(), unasked), WallShare())
    assert all(map(lives, pids(place)))
    await vllm.close()
    assert not any(map(lives, pids(place)))


async def test_what_cannot_start_says_why_in_one_line(place: Path):
    (place / "refuse").touch()
    with pytest.raises(ModelFileError, match=r"vLLM cannot serve tiny: .*ValueError: there is no such model$"):
        await Vllm.open(options(place), Egress(frozenset(), unasked), WallShare())
    wrong = VllmOptions(Path("/nowhere/python"), "m", "m")
    with pytest.raises(ModelFileError, match="there is no /nowhere/python"):
        await Vllm.open(wrong, Egress(frozenset(), unasked), WallShare())


async def test_pauses_between_starts_grow(vllm: Vllm, place: Path, caplog: pytest.LogCaptureFixture):
    (place / "refuse").touch()
    os.kill(pids(place)[0], signal.SIGKILL)
    await until(lambda: vllm.restarts >= 3)
    (place / "refuse").unlink()
    await until(lambda: vllm.pool.is_up)
    assert isinstance((await ask(vllm))[-1], Finish)
    ended = [r.args for r in caplog.records if r.message.startswith("vLLM has ended")]
    pauses = [args[1] for args in ended if isinstance(args, tuple)]
    assert len(pauses) == vllm.restarts and pauses == [0.05 * 2**n for n in range(len(pauses))]


async def test_what_it_says_is_in_our_log_at_its_level(place: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "baseload.vllm"):
        vllm = await Vllm.open(options(place), Egress(frozenset(), unasked), WallShare())
        await vllm.close()
    assert [r.levelname for r in caplog.records if "it stands in" in r.message] == ["WARNING"]


@pytest.mark.parametrize("name", ["refuse", "brief"])
async def test_a_child_that_ends_is_waited_for_with_its_last_words(place: Path, name: str):
    (place / name).touch()
    command = (str(place / "python"), "--model", "m", "--host", "127.0.0.1", "--port", "0", "--served-model-name", "m")
    child = await Child.start(command, {**os.environ, "VLLM_API_KEY": "k"}, logging.getLogger("test"))
    if name == "refuse":
        assert await child.wait() == 1
        assert "no such model" in child.tail[-1]
    else:
        await until(lambda: (place / "pids").exists() and child.tail)
        assert await child.stop() == 128 + signal.SIGTERM


OWNER = """
import asyncio, logging, os, sys
from baseload.runtime.child import Child

async def main():
    child = await Child.start(sys.argv[1:], os.environ, logging.getLogger("child"))
    print(child.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_nothing_outlives_an_owner_that_is_killed(place: Path):
    command = [sys.executable, "-c", OWNER, str(place / "python"), "--model", "m", "--host", "127.0.0.1", "--port", "0"]
    env = {**os.environ, "VLLM_API_KEY": "k"}
    owner = subprocess.Popen([*command, "--served-model-name", "m"], env=env, stdout=subprocess.PIPE)
    try:
        assert owner.stdout is not None
        guard = int(owner.stdout.readline())
        await until(lambda: (place / "pids").exists() and len((place / "pids").read_text().split()) == 2)
        everybody = [guard, *pids(place)]
        assert all(map(lives, everybody))
    finally:
        owner.kill()
        owner.wait()
    await until(lambda: not any(map(lives, everybody)))
