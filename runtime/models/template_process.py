"""The parent's side of template_worker.py: a child process that renders one model's templates.

It is started at the first rendering, and again after one that killed it. It ends with its stdin, so with us.
"""

import json
import os
import selectors
import struct
import subprocess
import sys
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

WORKER = Path(__file__).with_name("template_worker.py")
CPU_S = 0.5  # of one rendering; an honest one takes milliseconds
WALL_S = 10.0  # a stopped child (SIGSTOP) or a starved machine
MEMORY_BYTES = 384 << 20  # address space, of which Python itself takes some 60 MB


class TemplateFailed(Exception):
    """Nothing was rendered. `kind`: "syntax", "raised" (by the template), "limit" (time, memory, length) or "failed"."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class TemplateProcess:
    """Renders templates in a child process, one at a time. Safe to use from several threads."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        """`sources`: template name -> its text."""
        self._setup = {"sources": dict(sources), "cpu_s": CPU_S, "memory_bytes": MEMORY_BYTES}
        self._lock = Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def render(self, name: str, context: Mapping[str, Any], now: float | None = None) -> str:
        """Template `name` over `context` (JSON values). `now`: the time that it is told, in seconds since the epoch; None: the
        present. Raises TemplateFailed."""
        request = json.dumps({"template": name, "context": context, "now": now}).encode()
        with self._lock:
            try:
                answer = self._ask(request)
            except (OSError, EOFError) as e:
                self._stop()
                raise TemplateFailed("limit", "it took too much time or memory") from e
        if "text" not in answer:
            raise TemplateFailed(answer["kind"], answer["error"])
        return answer["text"]

    def close(self) -> None:
        """End the child; a later rendering starts another."""
        with self._lock:
            self._stop()

    def _ask(self, request: bytes) -> dict[str, str]:
        if self._child is None or self._child.poll() is not None:
            self._stop()
            self._child = self._start()
        _send(self._child, request)
        return json.loads(_receive(self._child))

    def _start(self) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [sys.executable, "-I", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C reaches us alone
            bufsize=0,
        )
        weakref.finalize(self, _end, child)
        _send(child, json.dumps(self._setup).encode())
        return child

    def _stop(self) -> None:
        if self._child is not None:
            _end(self._child)
            self._child = None


def _send(child: subprocess.Popen[bytes], body: bytes) -> None:
    assert child.stdin is not None
    rest = memoryview(struct.pack(">I", len(body)) + body)
    while rest:
        rest = rest[child.stdin.write(rest) :]


def _receive(child: subprocess.Popen[bytes]) -> bytes:
    (size,) = struct.unpack(">I", _read(child, 4))
    return _read(child, size)


def _read(child: subprocess.Popen[bytes], size: int) -> bytes:
    assert child.stdout is not None
    parts, missing = [], size
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while missing:
            if not selector.select(WALL_S):
                raise TimeoutError
            part = os.read(child.stdout.fileno(), min(missing, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            missing -= len(part)
    return b"".join(parts)


def _end(child: subprocess.Popen[bytes]) -> None:
    for pipe in (child.stdin, child.stdout):
        with suppress(OSError):
            if pipe is not None:
                pipe.close()
    child.kill()
    child.wait()
