"""The real server in a process of its own, on the real model, with a home in a temporary folder."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from baseload.runtime.store import default_root

MODEL = "smollm2-135m-instruct"
START_S = 120.0

# Runs at the start of the server's interpreter: every attempt of its Python code to reach an address goes into a file.
WATCH_SOCKETS = """
import os, sys

_log = os.open(os.environ["WATCH_SOCKETS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def _watch(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        os.write(_log, f"{event} {args[-1]!r}\\n".encode())


sys.addaudithook(_watch)
"""


@dataclass
class Server:
    """A running `baseload serve`."""

    process: subprocess.Popen[bytes]
    home: Path
    url: str = ""
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})

    @property
    def log(self) -> str:
        """All that it has said so far."""
        return (self.home / "server.log").read_text("utf-8")

    @property
    def reached(self) -> list[str]:
        """The addresses that its process has tried to reach, one `event address` per try."""
        return (self.home / "sockets.log").read_text().splitlines()

    def call(self, path: str, body: Any = None, raw: bytes | None = None, timeout_s: float = 120) -> tuple[int, Any, Any]:
        """(status, body, headers) of a GET, or of a POST where there is something to send."""
        data = raw if raw is not None else json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.url + path, data, self.headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                return answer.status, _parsed(answer.read()), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, _parsed(error.read()), error.headers

    def chat(self, text: str, **fields: Any) -> tuple[int, Any, Any]:
        """One chat request to `local`, greedy unless `fields` say otherwise."""
        body = {"model": "local", "temperature": 0, "max_tokens": 16, "messages": [{"role": "user", "content": text}]}
        return self.call("/v1/chat/completions", body | fields)

    def metrics(self) -> dict[str, float]:
        """The engine's gauges and counters by name, without labels."""
        _, page, _ = self.call("/metrics")
        found = re.findall(r"^((?:vllm:|baseload_)\w+)(?:\{[^}]*\})? ([0-9.e+-]+)$", page, re.MULTILINE)
        return {name: float(value) for name, value in found}

    def pages_in_use(self) -> float:
        """KV pages that a running request holds."""
        seen = self.metrics()
        return seen["baseload_kv_pages_total"] - seen["baseload_kv_pages_free"] - seen["baseload_kv_pages_cached"]

    def wait_until(self, true: Callable[[dict[str, float]], bool], timeout_s: float) -> dict[str, float]:
        """The first metrics that are as wanted; fails after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not true(seen := self.metrics()):
            assert time.monotonic() < deadline, {name: seen[name] for name in seen if "bucket" not in name}
            time.sleep(0.05)
        return seen

    def wait_idle(self, timeout_s: float = 30) -> dict[str, float]:
        """The metrics once nothing runs or waits and nobody holds a page."""
        return self.wait_until(_idle, timeout_s)

    def stop(self, timeout_s: float = 45) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


def _idle(seen: dict[str, float]) -> bool:
    free = seen["baseload_kv_pages_free"] + seen["baseload_kv_pages_cached"]
    busy = seen["vllm:num_requests_running"] + seen["vllm:num_requests_waiting"] + seen["baseload_answers_in_flight"]
    return busy == 0 and free == seen["baseload_kv_pages_total"]


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data.decode("utf-8", "replace")


Start = Callable[..., Server]


@pytest.fixture(scope="session")
def start(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """`start("--air-gap", config=TOML)` starts a server and waits until it is ready; it is killed at the session's end.
    `home`: an earlier server's, to go on from."""
    started: list[Server] = []

    def begin(
        *options: str, config: str = "", env: dict[str, str] | None = None, home: Path | None = None, start_s: float = START_S
    ) -> Server:
        home = home or tmp_path_factory.mktemp("home")
        (home / "sitecustomize.py").write_text(WATCH_SOCKETS)
        # A step of a busy test machine may take longer than the ten seconds after which an engine counts as stuck.
        text = f'[models]\nserve = ["{MODEL}"]\nstore = "{default_root()}"\n[engine]\nwatchdog_s = 120.0\n{config}'
        (home / "config.toml").write_text(text)
        command = [sys.executable, "-m", "baseload.cli.main", "serve", "--port", "0", *options]
        with (home / "server.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=home, env=_environment(home) | (env or {}), stderr=log, stdout=log)
        server = Server(process, home)
        started.append(server)
        _wait_ready(server, start_s)
        return server

    yield begin
    for server in started:
        server.process.kill()
        server.process.wait(10)


def _environment(home: Path) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BASELOAD_")}
    paths = [str(home), *(str(Path(p).resolve()) for p in clean.get("PYTHONPATH", "").split(os.pathsep) if p)]
    own = {"BASELOAD_HOME": str(home), "WATCH_SOCKETS": str(home / "sockets.log"), "PYTHONPATH": os.pathsep.join(paths)}
    return clean | own


def _wait_ready(server: Server, start_s: float) -> None:
    deadline = time.monotonic() + start_s
    while time.monotonic() < deadline:
        assert server.process.poll() is None, f"the server ended before it was ready:\n{server.log[-4000:]}"
        if found := re.search(r"listening on (http://[\d.]+:\d+)", server.log):
            server.url = found[1]
            if server.call("/ready")[0] == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"the server did not get ready:\n{server.log[-4000:]}")


@pytest.fixture(scope="session")
def shared(start: Start) -> Server:
    """One server for all tests that don't end it."""
    return start()


@pytest.fixture
def server(shared: Server) -> Server:
    """The shared server, idle when the test begins."""
    assert shared.process.poll() is None, f"the server has died:\n{shared.log[-4000:]}"
    shared.wait_idle()
    return shared
