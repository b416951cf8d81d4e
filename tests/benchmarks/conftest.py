"""A scripted OpenAI-compatible server: it says what the test wants, as slowly as the test wants."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web


@dataclass
class Script:
    """What the server does; `asked` are the bodies that came, in order."""

    pieces: int = 4  # of text in each answer
    first_s: float = 0.0  # before the first piece
    gap_s: float = 0.0  # before each later one
    usage: bool = True
    tokens_per_piece: int = 1
    status: list[int] = field(default_factory=list)  # of the first requests; then 200
    fault: str = ""  # "cut", "error event", "garbage", "no finish", "hang", "reset"
    slots: int = 1000  # answers made at once; the rest wait
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    most: int = 0  # answers at once, at most
    running: int = 0
    url: str = ""

    def words(self, body: dict[str, Any]) -> str:
        return body["prompt"] if "prompt" in body else body["messages"][0]["content"]


def chunk(path: str, piece: str | None, finish: str | None = None) -> dict[str, Any]:
    text = {"text": piece or ""} if path.endswith("/v1/completions") else {"delta": {"content": piece} if piece else {}}
    return {
        "id": "c",
        "object": "chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": finish, **text}],
    }


def line(value: Any) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


class FakeServer:
    def __init__(self, script: Script) -> None:
        self.script = script
        self._turn = asyncio.Condition()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        script, body = self.script, await request.json()
        script.asked.append(body)
        script.keys.append(request.headers.get("authorization"))
        status = script.status.pop(0) if script.status else 200
        if status != 200:
            return web.json_response({"error": {"message": "no", "type": "x", "code": "y", "param": None}}, status=status)
        async with self._turn:
            await self._turn.wait_for(lambda: script.running < script.slots)
            script.running += 1
        script.most = max(script.most, script.running)
        try:
            return await self._stream(request, body)
        finally:
            async with self._turn:
                script.running -= 1
                self._turn.notify()

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        script, response = self.script, web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(line(chunk(request.path, None)))  # a role, no text: not yet a first token
        for n in range(script.pieces):
            await asyncio.sleep(script.gap_s if n else script.first_s)
            await response.write(line(chunk(request.path, f"word{n} ")))
        match script.fault:
            case "cut":
                return response
            case "reset":
                assert request.transport
                request.transport.abort()
                return response
            case "error event":
                await response.write(line({"error": {"message": "dead"}}))
            case "garbage":
                await response.write(line(b"{no json"))
            case "hang":
                await asyncio.sleep(60)
        if script.fault != "no finish":
            await response.write(line(chunk(request.path, None, "length")))
        if script.usage and body.get("stream_options", {}).get("include_usage"):
            tokens = script.pieces * script.tokens_per_piece
            n = len(script.words(body).split())
            usage = {"prompt_tokens": n, "completion_tokens": tokens, "prompt_tokens_details": {"cached_tokens": n // 2}}
            await response.write(line({"choices": [], "usage": usage}))
        await response.write(line(b"[DONE]"))
        return response

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "m", "max_model_len": 8192}]})


@pytest.fixture
def script() -> Script:
    """Change it before the first request."""
    return Script()


@pytest.fixture
async def fake(script: Script) -> AsyncIterator[Script]:
    """The script, being played on `script.url`."""
    server = FakeServer(script)
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/chat/completions", server.answer)
    app.router.add_post("/v1/completions", server.answer)
    app.router.add_get("/v1/models", server.models)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    script.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield script
    await runner.cleanup()
