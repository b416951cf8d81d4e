"""A program as our child: what it says goes into our log, and nothing of it outlives us (child_guard.py)."""

import asyncio
import logging
import re
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

LINE = 2000  # characters of a line that are kept
TAIL = 50  # lines that are remembered, to say why it ended
LEVEL = re.compile(r"\b(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")
GUARD = Path(__file__).with_name("child_guard.py")
SWEEP_S = 10.0  # for the guard to kill what is left


class Child:
    """A running program. `start` one; `wait` for its end, or `stop` it."""

    def __init__(self, process: asyncio.subprocess.Process, log: logging.Logger, grace_s: float) -> None:
        self._process, self._log, self._grace_s = process, log, grace_s
        self.tail: deque[str] = deque(maxlen=TAIL)
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, command: Sequence[str], env: Mapping[str, str], log: logging.Logger, grace_s: float = 10.0) -> "Child":
        """`grace_s`: how long it may take to end when told to. Raises OSError where there is no such program."""
        if not Path(command[0]).is_file():
            raise FileNotFoundError(command[0])  # the guard's own complaint would be a stack trace
        pipe = asyncio.subprocess.PIPE
        guarded = (sys.executable, "-I", "-S", str(GUARD), str(grace_s), *command)
        process = await asyncio.create_subprocess_exec(
            *guarded, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT, env=env, start_new_session=True
        )
        return cls(process, log, grace_s)

    @property
    def pid(self) -> int:
        """The guard's; the program is its child."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Its exit status, once it has ended and its last words are in the log."""
        status = await self._process.wait()
        await self._reading
        return status

    async def stop(self) -> int:
        """SIGTERM, and SIGKILL to what is left after the grace; its exit status."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(self._grace_s + SWEEP_S):
                return await self.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                self._process.kill()
            return await self.wait()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        rest = b""
        while came := await self._process.stdout.read(1 << 16):
            *lines, rest = (rest + came).split(b"\n")
            rest = rest[: 4 * LINE]
            for line in lines:
                self._said(line)
        self._said(rest)

    def _said(self, raw: bytes) -> None:
        line = raw.decode("utf-8", "replace").rstrip()[:LINE]
        if line:
            self.tail.append(line)
            found = LEVEL.search(line[:80])
            self._log.log(logging.getLevelName(found[1]) if found else logging.INFO, "%s", line)
