"""SIGTERM under load: nothing new, what runs may finish, the rest is told, the books are whole, exit code 0."""

import asyncio
import json
import signal
import sqlite3
import time
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

pytestmark = pytest.mark.slow

DRAIN_S = 8.0
SHORT, ENDLESS = 8, 2
FOR_EVER = 8000  # tokens: many times what any engine says in DRAIN_S, with guessing off


@dataclass
class Stream:
    id: str
    tokens: int = 0
    finish: str | None = None
    error: Any = None
    ends: int = 0  # finishes and errors
    done: bool = False


async def stream(session: aiohttp.ClientSession, max_tokens: int, begun: asyncio.Semaphore) -> Stream:
    body = {"model": "local", "messages": [{"role": "user", "content": f"Write {max_tokens} words."}], "ignore_eos": True}
    options = {"max_tokens": max_tokens, "stream": True, "stream_options": {"continuous_usage_stats": True}}
    async with session.post("/v1/chat/completions", json=body | options) as response:
        assert response.status == 200
        one = Stream(response.headers["x-baseload-request-id"])
        async for line in response.content:
            if line.startswith(b"data: [DONE]"):
                one.done = True
            elif line.startswith(b"data: "):
                _note(one, json.loads(line[6:]), begun)
    return one


def _note(one: Stream, chunk: dict[str, Any], begun: asyncio.Semaphore) -> None:
    if "error" in chunk:
        one.error, one.ends = chunk["error"], one.ends + 1
        return
    if chunk["usage"]["completion_tokens"] and not one.tokens:
        begun.release()
    one.tokens = chunk["usage"]["completion_tokens"]
    for choice in chunk["choices"]:
        if choice["finish_reason"]:
            one.finish, one.ends = choice["finish_reason"], one.ends + 1


async def refused(url: str) -> bool:
    """Whether a new request gets 503, or no connection at all."""
    try:
        async with aiohttp.ClientSession(url) as session:
            ask = {"model": "local", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
            async with session.post("/v1/chat/completions", json=ask) as response:
                return response.status == 503
    except aiohttp.ClientConnectionError:
        return True


async def test_sigterm_under_load(start: Any):
    config, env = f"[server]\ndrain_timeout_s = {DRAIN_S}\n", {"BASELOAD_ENGINE__MAX_GUESS": "0"}
    server = await asyncio.to_thread(lambda: start(config=config, env=env))
    begun = asyncio.Semaphore(0)
    lengths = [24] * SHORT + [FOR_EVER] * ENDLESS
    async with aiohttp.ClientSession(server.url, connector=aiohttp.TCPConnector(limit=0)) as session:
        running = [asyncio.create_task(stream(session, n, begun)) for n in lengths]
        for _ in lengths:
            await begun.acquire()
        asked = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.5)
        assert await refused(server.url)
        streams = await asyncio.gather(*running)
    assert await asyncio.to_thread(server.process.wait, DRAIN_S + 30) == 0
    assert time.monotonic() - asked < DRAIN_S + 30
    for one in streams:
        assert one.ends == 1 and one.done, one
    short, endless = streams[:SHORT], streams[SHORT:]
    assert [(one.finish, one.tokens) for one in short] == [("length", 24)] * SHORT
    assert {one.error["code"] for one in endless} == {"shutting_down"}
    _check_books(server, streams)
    assert "Traceback" not in server.log


def _check_books(server: Any, streams: list[Stream]) -> None:
    with sqlite3.connect(f"file:{server.home}/ledger.db?mode=ro", uri=True) as books:
        status = dict(books.execute("SELECT id, status FROM requests"))
        tokens = dict(books.execute("SELECT request_id, completion_tokens FROM attempts"))
    books.close()
    assert set(status) == {one.id for one in streams}
    for one in streams:
        if one.finish:
            assert (status[one.id], tokens[one.id]) == ("done", one.tokens)
        else:
            assert status[one.id] in ("failed", "cancelled") and one.id in tokens


def test_idle_it_ends_at_once(start: Any):
    server = start()
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 20
    assert "Traceback" not in server.log
