"""What machine a benchmark ran on, and whether it was quiet."""

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

TICK_S = 0.02
BUSY_CLIENT = 0.8  # of one core: the client's event loop has no room left
LATE_LOOP_S = 0.025  # p99 of how late the event loop wakes
NOISY_HOST = 0.10  # of all cores, used by neither the client nor the server
SHORTEST_S = 0.5  # the system counts CPU time in ticks of 10 ms: in less time than this they tell nothing


def describe() -> dict[str, Any]:
    """The machine, for a report."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "cores_usable": len(psutil.Process().cpu_affinity() or []) if hasattr(psutil.Process, "cpu_affinity") else None,
        "memory_bytes": psutil.virtual_memory().total,
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Of the project (and its commit, run from a checkout) and of what the client is made of."""
    found = {name: _version(name) for name in ("baseload", "aiohttp", "uvloop")}
    here = Path(__file__).resolve().parents[1]
    if (here / ".git").exists():
        git = subprocess.run(["git", "-C", str(here), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
        found["commit"] = git.stdout.strip()
    return found


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def find_server(port: int) -> psutil.Process | None:
    """The process on this machine that listens on `port`; None if it cannot be seen."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and getattr(connection.laddr, "port", 0) == port and connection.pid:
                return psutil.Process(connection.pid)
    except psutil.Error:
        pass
    return None


def tree_seconds(process: psutil.Process) -> float:
    """CPU seconds that a process and its children have used."""
    total = 0.0
    try:
        for one in (process, *process.children(recursive=True)):
            times = one.cpu_times()
            total += times.user + times.system
    except psutil.Error:
        pass  # it ended meanwhile; what it used is counted as others'
    return total


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


@dataclass(frozen=True, slots=True)
class Watched:
    """How the machine was while a row ran. Shares: `client` of one core, `server` and `others` of all cores."""

    client_cpu: float
    server_cpu: float | None  # None: the server runs elsewhere, or cannot be seen
    others_cpu: float | None  # None: the server runs here, but cannot be told from the others; or it was too short a time
    loop_late_p99_s: float

    def flags(self) -> list[str]:
        """What makes the row doubtful, in words."""
        said = []
        if self.client_cpu > BUSY_CLIENT:
            said.append(f"the client is the bottleneck: it used {self.client_cpu:.0%} of a core")
        if self.loop_late_p99_s > LATE_LOOP_S:
            said.append(f"the client's clock is late: its event loop woke {self.loop_late_p99_s * 1000:.0f} ms late (p99)")
        if self.others_cpu is not None and self.others_cpu > NOISY_HOST:
            said.append(f"the host is noisy: other processes used {self.others_cpu:.0%} of its cores")
        return said


class Watch:
    """`async with Watch(server, local) as watch: ...; watch.seen` tells how the machine was meanwhile."""

    seen: Watched

    def __init__(self, server: psutil.Process | None, local: bool) -> None:
        self._server, self._local = server, local
        self._late: list[float] = []

    async def __aenter__(self) -> Watch:
        self._before = self._counts()
        self._ticking = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ticking.cancel()
        # A server that ended meanwhile took its count with it: no less than none.
        wall, busy, own, server = (max(0.0, b - a) for a, b in zip(self._before, self._counts(), strict=True))
        everything = max(wall, 1e-9) * (os.cpu_count() or 1)
        late = sorted(self._late)
        known = wall >= SHORTEST_S and (self._server is not None or not self._local)
        self.seen = Watched(
            client_cpu=own / max(wall, 1e-9),
            server_cpu=server / everything if self._server else None,
            others_cpu=max(0.0, busy - own - server) / everything if known else None,
            loop_late_p99_s=late[int(len(late) * 0.99)] if late else 0.0,
        )

    def _counts(self) -> tuple[float, float, float, float]:
        return time.perf_counter(), _busy_seconds(), time.process_time(), tree_seconds(self._server) if self._server else 0.0

    async def _tick(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(TICK_S)
            self._late.append(time.perf_counter() - before - TICK_S)
