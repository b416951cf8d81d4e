"""`baseload serve --engine vllm`: a program that stands in for vLLM, and vLLM itself where $VLLM_PYTHON and $VLLM_MODEL say so.

The real one: VLLM_PYTHON=/path/to/venv/bin/python VLLM_MODEL=/path/to/model pytest tests/e2e/test_vllm.py
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil
import pytest

STAND_IN = Path(__file__).parents[1] / "vllm_stand_in.py"
NAME = "tiny"


@dataclass
class House:
    """A server, and how to find its child's processes."""

    server: object
    processes: Callable[[], list[psutil.Process]]  # the guard, vLLM, and what vLLM started

    def __getattr__(self, name: str):
        return getattr(self.server, name)


@dataclass
class Heard:
    """What a client got."""

    request_id: str = ""
    words: int = 0
    error: str = ""
    whole: bool = False


@pytest.fixture(scope="module", params=["stand-in", pytest.param("real", marks=pytest.mark.slow)])
def house(request: pytest.FixtureRequest, start, tmp_path_factory: pytest.TempPathFactory) -> House:
    place = tmp_path_factory.mktemp("vllm")
    if request.param == "stand-in":
        (place / "python").write_text(STAND_IN.read_text().replace("/usr/bin/env python3", sys.executable, 1))
        (place / "python").chmod(0o755)
        model, args, env = "/models/tiny", "", {"VLLM_PYTHON": str(place / "python"), "STAND_IN": str(place)}
    else:
        if not (os.environ.get("VLLM_PYTHON") and os.environ.get("VLLM_MODEL")):
            pytest.skip("no vLLM: set VLLM_PYTHON (of its environment) and VLLM_MODEL (a folder)")
        (place / NAME).symlink_to(os.environ["VLLM_MODEL"])
        model, args = str(place / NAME), 'args = ["--max-model-len", "2048", "--max-num-seqs", "4", "--enforce-eager"]'
        env = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "VLLM_CACHE_ROOT": str(place / "cache")}
    server = start("--engine", "vllm", "--model", model, config=f"[vllm]\n{args}\n", env=env, start_s=500)

    def processes() -> list[psutil.Process]:
        return [p for p in psutil.Process(server.process.pid).children(recursive=True) if p.is_running()]

    return House(server, processes)


def ask(text: str, n: int) -> dict[str, object]:
    return {
        "model": "local",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": n,
        "stream": True,
        "ignore_eos": True,
    }


async def listen(client: httpx2.AsyncClient, body: dict[str, object], heard: Heard) -> None:
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        heard.request_id = answer.headers["x-baseload-request-id"]
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                heard.whole = not heard.error
            elif line.startswith("data: "):
                chunk = json.loads(line[6:])
                heard.error = chunk.get("error", {}).get("message", heard.error)
                heard.words += any(c["delta"].get("content") for c in chunk.get("choices", []))


def test_every_protocol_is_answered_and_stands_in_the_ledger(house):
    said = [{"role": "user", "content": "Count."}]
    bodies = {
        "/v1/chat/completions": {"model": "auto", "messages": said, "max_tokens": 4},
        "/v1/completions": {"model": NAME, "prompt": "One, two,", "max_tokens": 4, "top_k": 1},
        "/v1/messages": {"model": "local", "messages": said, "max_tokens": 4, "top_k": 1},
        "/v1/responses": {"model": "local", "input": "Count.", "max_output_tokens": 16},
    }
    for path, body in bodies.items():
        status, answer, headers = house.call(path, body)
        assert status == 200, (path, answer)
        row = house.call(f"/v1/requests/{headers['x-baseload-request-id']}")[1]
        [attempt] = row["attempts"]
        assert (row["status"], attempt["backend"], attempt["model"]) == ("done", "local", NAME)
        assert attempt["completion_tokens"] and attempt["prompt_tokens"] and attempt["device_seconds"] > 0


def test_a_check_holds_an_answer_back(house):
    body = {"model": "auto", "messages": [{"role": "user", "content": "Count."}], "max_tokens": 4}
    body["baseload"] = {"checks": [{"type": "regex", "pattern": "no answer holds this: ¶"}]}
    status, answer, _ = house.call("/v1/chat/completions", body)
    assert (status, answer["error"]["code"]) == (403, "escalation_denied")


def test_its_numbers_stand_beside_ours_and_its_words_in_our_log(house):
    page = house.call("/metrics")[1]
    assert 'vllm:num_requests_running{engine="0"' in page
    assert f'baseload_replica_up{{model_name="{NAME}",replica="vllm"}} 1.0' in page
    assert page.count("# TYPE vllm:time_to_first_token_seconds histogram") == 1 and "\nhttp_requests" not in page
    assert "baseload.vllm" in house.log
    assert house.call("/health")[1]["replicas"] == [{"model": NAME, "up": 1, "of": 1}]


async def test_killed_under_load_it_comes_back(house):
    before = house.processes()
    heard = [Heard() for _ in range(32)]
    async with httpx2.AsyncClient(base_url=house.url, timeout=280, limits=httpx2.Limits(max_connections=64)) as client:
        tasks = [asyncio.create_task(listen(client, ask(f"Count from {n}.", 24), heard[n])) for n in range(32)]
        while not any(h.words for h in heard):
            await asyncio.sleep(0.005)
        next(p for p in before if "child_guard" not in " ".join(p.cmdline())).kill()
        begun = [h.words > 0 for h in heard]
        await asyncio.gather(*tasks)
    assert all(h.whole or h.error for h in heard), "nothing hangs"
    assert all(h.whole for h, had in zip(heard, begun, strict=True) if not h.error and not had)
    assert all(h.words for h in heard if h.error), "an error stands only where words had come"
    assert sum(h.whole for h in heard) >= 32 - 8, "what waited was answered by the next child"
    rows = [house.call(f"/v1/requests/{h.request_id}")[1] for h in heard]
    assert [row["status"] for row in rows] == ["failed" if h.error else "done" for h in heard]
    assert all(len(row["attempts"]) == 1 for row in rows)
    gone = psutil.wait_procs(before, timeout=30)[1]
    assert not gone, "the old child and all it started have gone"
    assert house.call("/ready")[0] == 200


def test_nothing_outlives_a_server_that_is_killed(house):
    everybody = house.processes()
    assert len(everybody) >= 3
    house.process.kill()
    house.process.wait(10)
    deadline = time.monotonic() + 40
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in everybody):
        assert time.monotonic() < deadline
        time.sleep(0.1)
