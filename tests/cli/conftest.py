"""A command line to call in this process, a home of its own, and a stand-in for a server."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from baseload.cli.main import build

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees the machine's own store, settings or working folder."""
    for name in ("BASELOAD_API_KEY", "BASELOAD_LEDGER", "BASELOAD_PORT", "BASELOAD_MODEL", "BASELOAD_AIR_GAP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BASELOAD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def cli() -> Run:
    """`cli("ask", "Hi?", input="...")` runs `baseload ask Hi?`."""

    def run(*words: str, input: str = "") -> Result:
        return CliRunner().invoke(build(words[0]), list(words), input=input)

    return run


class FakeServer(BaseHTTPRequestHandler):
    """An OpenAI-compatible server that says what the test wants, and remembers what it was asked."""

    asked: list[dict[str, Any]]
    headers_seen: list[dict[str, str]]
    pieces: list[str]
    broken: str  # "": answers; "error": a 503; "stream": an error event in the middle
    pages: dict[str, str]

    def do_GET(self) -> None:
        self._send(200, self.pages.get(self.path, "").encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(body)
        self.headers_seen.append({k.lower(): v for k, v in self.headers.items()})
        if self.broken == "error":
            error = {"message": "The server is starting.", "type": "server_error", "code": "starting", "param": None}
            return self._send(503, json.dumps({"error": error}).encode())
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for piece in self.pieces:
            self._chunk({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
        if self.broken == "stream":
            return self._chunk({"error": {"message": "The engine has died.", "type": "server_error", "code": "internal_error"}})
        self._chunk({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self._chunk({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _chunk(self, value: dict[str, Any]) -> None:
        head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        self.wfile.write(b"data: " + json.dumps({**head, **value}).encode() + b"\n\n")
        self.wfile.flush()

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    """The stand-in's handler class; `server.url` is its address."""

    class Handler(FakeServer):
        asked, headers_seen, pieces, broken, pages, url = [], [], ["Par", "is", "."], "", {}, ""

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Handler.url = f"http://127.0.0.1:{listener.server_port}"
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    yield Handler
    listener.shutdown()
    listener.server_close()
