"""What the gateway benchmark starts where it is given no address: the stand-in, and a server in front of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from .stand_in import MODEL

SUPPLIER = "standin"
READY_S = 120.0
CONFIG = """
[server]
port = {port}
[router]
allowed_suppliers = ["{supplier}"]
[ledger]
url = "sqlite:///{ledger}"
[log]
level = "info"
format = "json"
[suppliers.{supplier}]
base_url = "{url}/v1"
models = [{{ id = "{model}", context_length = 8192 }}]
"""


def config(standin: str, port: int, ledger: Path) -> str:
    """A server's configuration with the stand-in at `standin` as a supplier."""
    return CONFIG.format(port=port, supplier=SUPPLIER, ledger=ledger, url=standin, model=MODEL)


def started(ends: ExitStack, standin: str, baseload: str, tokens: int, model: str) -> tuple[str, str]:
    """The addresses of the stand-in and of the server; what is not given is started, and stopped by `ends`. Raises RuntimeError
    where one of them does not come up."""
    here = Path(ends.enter_context(tempfile.TemporaryDirectory()))
    if not standin:
        port = free_port()
        words = ["baseload.benchmarks.stand_in", "--port", str(port), "--tokens", str(tokens)]
        standin = _start(ends, words, port, "/v1/models", here / "stand-in.log")
    if not baseload:
        port = free_port()
        (here / "baseload.toml").write_text(config(standin, port, here / "ledger.db"), "utf-8")
        words = ["baseload.cli.main", "serve", "--config", str(here / "baseload.toml"), *(["--model", model] if model else [])]
        baseload = _start(ends, words, port, "/ready", here / "server.log")
    return standin, baseload


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def _start(ends: ExitStack, words: list[str], port: int, path: str, log: Path) -> str:
    """Run a module until `ends`; its address once it answers."""
    with log.open("wb") as out:
        child = subprocess.Popen([sys.executable, "-m", *words], stdout=out, stderr=out, env=dict(os.environ))
    return wait_for(ends, child, port, path, log)


def wait_for(ends: ExitStack, child: subprocess.Popen[bytes], port: int, path: str, log: Path) -> str:
    """The child's address once it answers on `path`; `ends` will stop it. Raises RuntimeError with the end of its log."""
    ends.callback(_stop, child)
    url = f"http://127.0.0.1:{port}"
    until = time.monotonic() + READY_S
    while time.monotonic() < until and child.poll() is None:
        try:
            with urllib.request.urlopen(url + path, timeout=5):
                return url
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    said = log.read_text("utf-8", "replace")[-2000:]
    raise RuntimeError(f"{child.args} does not answer on port {port}: {said}")


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
