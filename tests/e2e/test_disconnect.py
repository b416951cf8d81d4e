"""A client that goes away takes its work with it, in whatever phase the work is."""

import asyncio
import contextlib
import json
import random
from typing import Any

import aiohttp
import pytest

pytestmark = pytest.mark.slow

DROPS, AT_ONCE = 200, 50


def body(source: random.Random, n: int) -> dict[str, Any]:
    words = " ".join(source.choices(("alpha", "beta", "gamma", "delta"), k=source.choice((5, 40, 300))))
    return {
        "model": source.choice(("local", "auto")),
        "messages": [{"role": "user", "content": f"{n} {words}"}],
        "max_tokens": 400,
        "ignore_eos": True,
        "n": source.choice((1, 1, 1, 2)),
        "stream": source.random() < 0.6,
    }


async def dropped(session: aiohttp.ClientSession, what: dict[str, Any], after_s: float) -> None:
    async def read() -> None:
        async with session.post("/v1/chat/completions", json=what) as response:
            await response.read()

    with contextlib.suppress(TimeoutError, aiohttp.ClientError):
        await asyncio.wait_for(read(), after_s)


async def test_200_clients_drop_at_random_and_nothing_stays_behind(server: Any):
    _, before, _ = server.chat("Name a colour.")
    source = random.Random(17)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(server.url, connector=connector) as session:
        for wave in range(0, DROPS, AT_ONCE):
            # From "before the head was read" over "waiting for a place" to "in the middle of its words".
            asks = [(body(source, wave + n), source.choice((0.001, 0.02, 0.2, 1, 2)) * source.random()) for n in range(AT_ONCE)]
            await asyncio.gather(*(dropped(session, what, after) for what, after in asks))
    seen = await asyncio.to_thread(server.wait_idle, 10)
    assert seen["baseload_engine_alive"] == 1
    _, after, _ = server.chat("Name a colour.")
    assert after["choices"] == before["choices"]


async def test_a_client_killed_in_mid_stream_frees_its_pages_within_a_step(server: Any):
    start = server.metrics()
    text = "Tell me a long story. " + "word " * 100
    ask = {"model": "local", "messages": [{"role": "user", "content": text}], "max_tokens": 1000, "ignore_eos": True}
    ask |= {"stream": True, "stream_options": {"continuous_usage_stats": True}}
    received = 0
    async with aiohttp.ClientSession(server.url) as session:
        async with session.post("/v1/chat/completions", json=ask) as response:
            async for line in response.content:
                if line.startswith(b"data: {"):
                    received = json.loads(line[6:])["usage"]["completion_tokens"]
                if received >= 12:
                    break
            during = await asyncio.to_thread(server.metrics)
            connection = response.connection
            assert connection and connection.transport
            connection.transport.abort()
    held = during["baseload_kv_pages_total"] - during["baseload_kv_pages_free"] - during["baseload_kv_pages_cached"]
    assert during["vllm:num_requests_running"] == 1 and held >= 4
    end = await asyncio.to_thread(server.wait_idle, 5)
    after_close = end["baseload_engine_steps_total"] - during["baseload_engine_steps_total"]
    # One step, and those that went by while the metrics and the closing were on their way.
    assert after_close <= 10, f"{after_close} steps after the client had gone"
    assert end["vllm:generation_tokens_total"] - start["vllm:generation_tokens_total"] < 100


async def test_a_client_that_waits_in_the_queue_leaves_it(server: Any):
    ask = {"model": "local", "messages": [{"role": "user", "content": "Go on."}], "max_tokens": 400, "ignore_eos": True}
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(server.url, connector=connector) as session:
        tasks = [asyncio.create_task(dropped(session, ask | {"n": 8}, 60)) for _ in range(12)]  # 96 sequences, 64 places

        def is_full(seen: dict[str, float]) -> bool:  # all wait for a moment before the first are let in
            return seen["vllm:num_requests_waiting"] > 0 and seen["vllm:num_requests_running"] > 0

        await asyncio.to_thread(server.wait_until, is_full, 30)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.to_thread(server.wait_idle, 10)
