"""The process: binding, starting, draining, leaving."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx2
import pytest

from baseload.server.run import bind, run
from baseload.server.settings import ServerSettings, Settings, SettingsError
from baseload.wire.chat import ChatRequest, Event, Finish, TextDelta

# A server in a process of its own. Its model is loaded once the file LOADED exists; its answers end once ENOUGH does.
PROGRAM = """
    import asyncio, sys, os
    from types import SimpleNamespace
    from baseload.server.run import run
    from baseload.server.services import Services
    from baseload.server.settings import LogSettings, ServerSettings, Settings
    from baseload.wire.chat import Finish, TextDelta

    class Router:
        def resolve(self, name): return name
        def models(self): return ()
        async def handle(self, request, context):
            return SimpleNamespace(events=self.events(), attempts=(), cost_usd=None, route="local")
        async def events(self):
            yield TextDelta("first ", tokens=1)
            await exists("ENOUGH")
            yield TextDelta("last", tokens=1)
            yield Finish("stop")

    async def exists(name):
        while not os.path.exists(name):
            await asyncio.sleep(0.02)

    async def close():
        print("closed", flush=True)

    async def services():
        await exists("LOADED")
        if os.environ.get("BROKEN"):
            raise OSError("no model here")
        return Services(Router(), close=close)

    settings = Settings(
        server=ServerSettings(port=int(os.environ["PORT"]), drain_timeout_s=float(os.environ.get("DRAIN_S", "10"))),
        log=LogSettings(format="json"),
    )
    run(services, settings)
"""


class Child:
    """The program above, running."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        program = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
        settings = os.environ | {"PORT": str(self.port)} | env
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(program, env=settings, cwd=folder, stdout=pipe, stderr=pipe, text=True)

    def touch(self, name: str) -> None:
        (self.folder / name).touch()

    def wait_for(self, status: int) -> httpx2.Response:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if (answer := httpx2.get(self.url + "/ready")).status_code == status:
                    return answer
            except httpx2.TransportError:
                pass
            time.sleep(0.02)
        raise AssertionError("the server did not come up")

    def ask(self, **more: object) -> httpx2.Response:
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **more}
        return httpx2.post(self.url + "/v1/chat/completions", json=body, timeout=60)

    def ask_in_background(self, **more: object) -> tuple[threading.Thread, list[httpx2.Response]]:
        """An answer that has begun; it is in the list when the thread has ended."""
        answers: list[httpx2.Response] = []
        thread = threading.Thread(target=lambda: answers.append(self.ask(**more)))
        thread.start()
        while "baseload_answers_in_flight 1" not in httpx2.get(self.url + "/metrics").text:
            time.sleep(0.02)
        return thread, answers

    def leave(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture
def child(tmp_path: Path):
    """`child(loaded, **environment)` starts the program; it is killed at the end if it still runs."""
    children: list[Child] = []

    def start(loaded: bool = True, **env: str) -> Child:
        if loaded:
            (tmp_path / "LOADED").touch()
        children.append(Child(tmp_path, env))
        return children[-1]

    yield start
    for one in children:
        one.process.kill()
        one.process.communicate()


def test_sigterm_lets_running_answers_finish_refuses_new_ones_and_exits_0(child):
    server = child(DRAIN_S="60")
    server.wait_for(200)
    thread, answers = server.ask_in_background(stream=True)
    server.process.send_signal(signal.SIGTERM)
    assert server.wait_for(503).json()["reason"] == "draining"
    new = server.ask()
    assert (new.status_code, new.json()["error"]["code"]) == (503, "shutting_down")
    assert int(new.headers["retry-after"]) >= 1
    server.touch("ENOUGH")
    thread.join()
    assert "last" in answers[0].text
    assert answers[0].text.rstrip().endswith("data: [DONE]")
    code, out, err = server.leave()
    assert (code, out) == (0, "closed\n")
    assert "Traceback" not in err


@pytest.mark.parametrize("stream", [True, False])
def test_what_does_not_finish_in_time_gets_a_failure(child, stream):
    server = child(DRAIN_S="0.3")
    server.wait_for(200)
    thread, answers = server.ask_in_background(stream=stream)
    server.process.send_signal(signal.SIGTERM)
    thread.join()
    assert "shutting_down" in answers[0].text
    if stream:
        assert answers[0].text.rstrip().endswith("data: [DONE]")
    else:
        assert answers[0].status_code == 503
        assert answers[0].headers["retry-after"]
    assert server.leave()[:2] == (0, "closed\n")


def test_a_second_sigterm_waits_no_longer(child):
    server = child(DRAIN_S="600")
    server.wait_for(200)
    thread, answers = server.ask_in_background(stream=True)
    server.process.send_signal(signal.SIGTERM)
    server.wait_for(503)
    server.process.send_signal(signal.SIGTERM)
    thread.join()
    assert server.leave()[:2] == (0, "closed\n")
    assert "shutting_down" in answers[0].text


def test_health_answers_while_the_model_is_loaded(child):
    server = child(loaded=False)
    assert server.wait_for(503).json()["reason"] == "starting"
    server.touch("LOADED")
    server.wait_for(200)
    server.touch("ENOUGH")
    assert server.ask().status_code == 200
    server.process.send_signal(signal.SIGINT)
    assert server.leave()[0] == 0


def test_a_server_that_is_stopped_while_it_starts_leaves_at_once(child):
    server = child(loaded=False)
    server.wait_for(503)
    server.process.send_signal(signal.SIGTERM)
    code, out, _ = server.leave()
    assert (code, out) == (0, "")


def test_a_model_that_cannot_be_loaded_ends_the_process_with_its_error(child):
    code, _, err = child(BROKEN="1").leave()
    assert code == 1
    assert "no model here" in err


def test_a_port_in_use_is_one_line():
    with bind(ServerSettings(port=0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"127.0.0.1:{port}") as caught:
            bind(ServerSettings(port=port))
    assert "\n" not in caught.value.message
    with pytest.raises(SettingsError, match="Cannot listen"):
        bind(ServerSettings(host="no.such.host.invalid"))


def test_binding_wide_without_a_key_is_refused_before_anything_is_loaded(monkeypatch):
    monkeypatch.delenv("BASELOAD_API_KEY", raising=False)

    async def never():
        raise AssertionError("loaded")

    with pytest.raises(SettingsError, match="without a key"):
        run(never, Settings(server=ServerSettings(host="0.0.0.0", port=0)))


def test_a_kept_connection_gets_503_while_draining(serve):
    go = threading.Event()

    async def held(_: ChatRequest) -> AsyncGenerator[Event, None]:
        while not go.is_set():
            await asyncio.sleep(0.01)
        yield TextDelta("done", tokens=1)
        yield Finish("stop")

    running = serve(held)
    with httpx2.Client(base_url=running.url, timeout=10) as kept:
        assert kept.get("/v1/models").status_code == 200
        thread = threading.Thread(target=running.post)
        thread.start()
        running.until(lambda: running.router.started == 1)
        running.server.should_exit = True
        running.until(lambda: running.app.state.life.phase == "draining")
        assert kept.get("/v1/models").status_code == 503
        go.set()
        thread.join()
    running.stop()
