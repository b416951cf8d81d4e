"""A real server in a thread, over a router whose answers are scripted."""

import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
import uvicorn
import uvloop

from baseload.runtime.engine.kv_store import StoreStats
from baseload.server.app import create_app
from baseload.server.http_protocol import Limits, bounded
from baseload.server.run import Server, bind, uvicorn_config
from baseload.server.services import Services
from baseload.server.settings import ServerSettings, Settings
from baseload.wire.backend import ModelInfo
from baseload.wire.chat import ChatRequest, Event, Finish, TextDelta, Usage
from baseload.wire.errors import ModelNotFound

Script = Callable[[ChatRequest], AsyncGenerator[Event, None]]


async def echo(ask: ChatRequest) -> AsyncGenerator[Event, None]:
    """Says the prompt back, once for each choice."""
    text = ask.messages[-1].text if ask.messages else str(ask.prompt)
    for index in range(ask.sampling.n):
        for word in text.split(" "):
            yield TextDelta(f"{word} ", index=index, tokens=1)
    yield Usage(3, ask.sampling.n * len(text.split(" ")))
    for index in range(ask.sampling.n):
        yield Finish("stop", index)


@dataclass
class ScriptedHandling:
    events: AsyncGenerator[Event, None]
    route: str = "local"
    attempts: list[str] = field(default_factory=lambda: ["one"])
    cost_usd: float | None = 0.0
    decision: Any = None


@dataclass
class ScriptedRouter:
    """`script` makes the events; `open` counts the scripts that run, `closed` those that have ended or were stopped."""

    script: Script = echo
    asked: list[tuple[ChatRequest, Any]] = field(default_factory=list)
    error: Exception | None = None
    started: int = 0
    closed: int = 0

    def models(self) -> tuple[ModelInfo, ...]:
        return (ModelInfo("tiny", 2048, created=7), ModelInfo("far/big", 8192, owned_by="far", local=False))

    def resolve(self, name: str) -> str:
        if name not in {"tiny", "auto", "local", "far/big"}:
            raise ModelNotFound(f"The model {name[:64]!r} does not exist.", param="model")
        return name

    async def handle(self, request: ChatRequest, context: Any) -> ScriptedHandling:
        if self.error:
            raise self.error
        self.asked.append((request, context))
        return ScriptedHandling(self._run(request))

    def tokenizing(self, name: str) -> Any:
        raise NotImplementedError

    async def count_tokens(self, request: ChatRequest) -> int | None:
        self.resolve(request.model)
        return sum(len(m.text.split()) for m in request.messages)

    async def _run(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        self.started += 1
        try:
            async for event in self.script(request):
                yield event
        finally:
            self.closed += 1


@dataclass
class Stats:
    """EngineStats, as far as the server reads it."""

    running: int = 2
    waiting: int = 1
    pages_total: int = 100
    pages_free: int = 60
    pages_cached: int = 15
    prefix_hit_tokens: int = 40
    prefix_query_tokens: int = 50
    prompt_tokens: int = 500
    generation_tokens: int = 600
    preemptions: int = 3
    guessed_tokens: int = 90
    kept_tokens: int = 70
    steps: int = 70
    device_seconds: float = 5.0
    last_step_age_s: float = 0.1
    alive: bool = True
    kv_store: StoreStats = field(default_factory=lambda: StoreStats(True, 7, 7000, 8, 9, 1, 11, 2))


@dataclass
class ScriptedEngine:
    now: Stats = field(default_factory=Stats)

    def stats(self) -> Stats:
        return self.now


@dataclass
class ScriptedLedger:
    requests: dict[str, dict[str, Any]] = field(default_factory=dict)
    flushed: int = 0
    rows: list[Any] = field(default_factory=list)
    engine: Any = None

    def flush(self) -> None:
        self.flushed += 1

    def request(self, request_id: str) -> dict[str, Any] | None:
        return self.requests.get(request_id)

    def feedback(self, request_id: str, **said: Any) -> bool:
        raise NotImplementedError

    def add(self, row: Any) -> None:
        self.rows.append(row)


@dataclass
class Running:
    """A server that runs, and what it was made of."""

    url: str
    port: int
    router: ScriptedRouter
    app: Any
    server: Server
    thread: threading.Thread
    engine: ScriptedEngine
    ledger: ScriptedLedger

    def post(self, path: str = "/v1/chat/completions", **body: Any) -> httpx2.Response:
        headers = body.pop("headers", None)
        return httpx2.post(self.url + path, json=chat(**body) if "chat" in path else body, headers=headers, timeout=20)

    def get(self, path: str, **headers: str) -> httpx2.Response:
        return httpx2.get(self.url + path, headers=headers, timeout=20)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def until(self, true: Callable[[], bool], seconds: float = 5.0) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, "it did not come true in time"
            time.sleep(0.01)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


def chat(text: str = "hello there", **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}]} | more


@pytest.fixture
def serve() -> Iterator[Callable[..., Running]]:
    """`serve(script, limits=..., key=..., **server settings)` -> Running."""
    running: list[Running] = []

    def start(
        script: Script = echo, *, limits: Limits | None = None, key: str = "", started: bool = True, **section: Any
    ) -> Running:
        settings = Settings(server=ServerSettings(**{"port": 0, "drain_timeout_s": 5.0} | section))
        router, engine, ledger = ScriptedRouter(script), ScriptedEngine(), ScriptedLedger()
        services = Services(router, ledger, lambda: {"tiny": engine})
        app = create_app(services if started else None, settings, env={"BASELOAD_API_KEY": key})
        config = uvicorn_config(app, settings.server)
        if limits:
            config = replaced(config, http=bounded(limits))
        listener = bind(settings.server)
        server = Server(config, app.state.life, settings.server.drain_timeout_s)
        thread = threading.Thread(target=lambda: uvloop.run(server.serve(sockets=[listener])))
        thread.start()
        port = listener.getsockname()[1]
        running.append(Running(f"http://127.0.0.1:{port}", port, router, app, server, thread, engine, ledger))
        running[-1].until(lambda: server.started)
        return running[-1]

    yield start
    for one in running:
        one.server.should_exit = True
        one.app.state.life.hurry.set()
    for one in running:
        one.stop()


def replaced(config: uvicorn.Config, **changes: Any) -> uvicorn.Config:
    config.http = changes["http"]
    return config
