"""A prefix outlives its process: kill -9, start again, and the same words come sooner. A broken file changes no word."""

import json
import os
import random
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

WORDS = "time year people way day man thing woman life child world school state family student group country"
PROMPT = " ".join(random.Random(11).choices(WORDS.split(), k=4000))
TOKENS = 24


def ask(server: Any) -> tuple[str, int, float]:
    """The greedy answer's words, how many tokens of the prompt were known, and the seconds to its first word."""
    body = {"model": "local", "temperature": 0, "max_tokens": TOKENS, "stream": True, "ignore_eos": True}
    body |= {"stream_options": {"include_usage": True}, "messages": [{"role": "user", "content": PROMPT}]}
    request = urllib.request.Request(server.url + "/v1/chat/completions", json.dumps(body).encode(), server.headers)
    began, first, text, known = time.perf_counter(), 0.0, "", -1
    with urllib.request.urlopen(request, timeout=200) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                chunk = json.loads(line[6:])
                for choice in chunk["choices"]:
                    text += choice["delta"].get("content") or ""
                    first = first or (time.perf_counter() - began if text else 0.0)
                known = chunk["usage"]["prompt_tokens_details"]["cached_tokens"] if chunk.get("usage") else known
    return text, known, first


def wait_open(server: Any) -> dict[str, float]:
    return server.wait_until(lambda seen: seen["baseload_kv_store_enabled"] == 1, 30)


def kill(server: Any) -> None:
    server.process.kill()
    server.process.wait(20)


def kv_file(home: Path) -> Path:
    (file,) = home.glob("kv/*/pages")
    return file


def test_a_killed_servers_prefix_is_warm_in_the_next_one(start: Any, capsys: pytest.CaptureFixture[str]):
    first = start()
    wait_open(first)
    cold, known, cold_s = ask(first)
    assert known == 0 and len(cold) > TOKENS
    first.wait_until(lambda seen: seen["baseload_kv_store_pages"] >= 125, 20)
    kill(first)
    assert kv_file(first.home).stat().st_mode & 0o077 == 0, "what was asked can be guessed from it: it is its owner's alone"

    second = start(home=first.home)
    wait_open(second)
    warm, known, warm_s = ask(second)
    with capsys.disabled():
        print(f"\n  4,000 tokens: first word after {cold_s:.2f} s cold, {warm_s:.2f} s after a kill: {warm_s / cold_s:.3f}x")
    assert warm == cold and known >= 3900
    seen = second.metrics()
    assert seen["baseload_kv_store_hits_total"] >= 121 and seen["baseload_kv_store_corrupt_total"] == 0
    kill(second)

    _flip_a_byte_in_each_page(kv_file(first.home), random.Random(5))
    third = start(home=first.home)
    wait_open(third)
    again, known, _ = ask(third)
    seen = third.wait_until(lambda seen: seen["baseload_kv_store_pages"] >= 125, 20)
    assert again == cold and known < 200
    assert seen["baseload_kv_store_corrupt_total"] > 0
    assert third.stop() == 0

    fourth = start(home=first.home)
    wait_open(fourth)
    healed, known, _ = ask(fourth)
    assert healed == cold and known >= 3900, "what was broken was written again"
    assert "Traceback" not in fourth.log


def test_it_can_be_turned_off(start: Any):
    server = start(config="kv_disk_mb = 0\n")
    assert server.chat("Hello")[0] == 200
    assert server.metrics()["baseload_kv_store_enabled"] == 0 and not (server.home / "kv").exists()


def test_a_second_server_on_the_same_home_serves_without_a_store(start: Any):
    first = start()
    wait_open(first)
    second = start(home=first.home)
    assert second.chat("Hello")[0] == 200
    assert second.metrics()["baseload_kv_store_enabled"] == 0
    assert second.log.count("another process uses it") == 1


def _flip_a_byte_in_each_page(path: Path, rng: random.Random) -> None:
    with path.open("r+b") as file:
        for at in range(8192, os.fstat(file.fileno()).st_size, 200_000):
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ rng.randrange(1, 256)]))
