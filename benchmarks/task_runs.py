"""A task set through one candidate: a server of its own, every task once, and what the ledger says of each.

A candidate is a model, as a client names it, under a policy, which is a server's configuration file. Each pass has a new server
with an empty cache that leaves nothing behind, so that no candidate and no repetition profits from the one before.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from ..ledger.machine_cost import Hardware, request_usd, usd_per_hour
from .gateway_servers import free_port, wait_for
from .machine import Watch, Watched, find_server
from .task_set import Task


@dataclass(frozen=True, slots=True)
class Candidate:
    """`policy` is a name; `config` its file, None for the defaults."""

    model: str
    policy: str
    config: Path | None = None

    @property
    def name(self) -> str:
        return f"{self.model} @ {self.policy}"


@dataclass(frozen=True, slots=True)
class TaskRun:
    """One task, once. What is None is not known, and never taken as nothing."""

    task: str
    kind: str
    model: str
    policy: str
    repeat: int
    accepted: bool
    usd: float | None  # of all its attempts: list prices of suppliers', the machine's time of local ones
    joules: float | None  # of this machine
    e2e_s: float
    attempts: int
    local: int  # of these, on this machine
    error: str | None


@dataclass(frozen=True, slots=True)
class Pass:
    """All tasks once, and how the machine was meanwhile."""

    runs: list[TaskRun]
    seen: Watched


def run_pass(
    candidate: Candidate, tasks: Sequence[Task], repeat: int, at_once: int, timeout_s: float, hardware: Hardware | None
) -> Pass:
    """Raises RuntimeError where the server does not come up."""
    with ExitStack() as ends:
        here = Path(ends.enter_context(tempfile.TemporaryDirectory()))
        port = free_port()
        url = serve(ends, candidate, port, here)
        return asyncio.run(_drive(url, port, candidate, tasks, repeat, at_once, timeout_s, hardware))


def serve(ends: ExitStack, candidate: Candidate, port: int, here: Path) -> str:
    """A server with the candidate's configuration, except for where it listens and what it leaves behind."""
    own = {
        "BASELOAD_SERVER__PORT": str(port),
        "BASELOAD_LEDGER__URL": f"sqlite:///{here / 'ledger.db'}",
        "BASELOAD_ENGINE__KV_DISK_MB": "0",
        # The built-in programs are run to see whether they are right; a policy's own file says this for itself.
        **({} if candidate.config else {"BASELOAD_ROUTER__CODE_CHECKS": "true"}),
    }
    words = [sys.executable, "-m", "baseload.cli.main", "serve"]
    if candidate.config:
        words += ["--config", str(candidate.config.resolve())]
    log = here / "server.log"
    with log.open("wb") as out:
        child = subprocess.Popen(words, stdout=out, stderr=out, env=os.environ | own)
    return wait_for(ends, child, port, "/ready", log)


async def _drive(
    url: str,
    port: int,
    candidate: Candidate,
    tasks: Sequence[Task],
    repeat: int,
    at_once: int,
    timeout_s: float,
    hardware: Hardware | None,
) -> Pass:
    gate = asyncio.Semaphore(at_once)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s)) as session:

        async def one(task: Task) -> TaskRun:
            async with gate:
                return await _ask(session, url, candidate, task, repeat, hardware)

        async with Watch(find_server(port), local=True) as watch:
            runs = await asyncio.gather(*(one(task) for task in tasks))
    return Pass(list(runs), watch.seen)


async def _ask(
    session: aiohttp.ClientSession, url: str, candidate: Candidate, task: Task, repeat: int, hardware: Hardware | None
) -> TaskRun:
    start = time.perf_counter()
    error: str | None = None
    answer: dict[str, Any] = {}
    row: dict[str, Any] = {}
    took = 0.0
    try:
        async with session.post(f"{url}/v1/chat/completions", json=task.request(candidate.model)) as response:
            answer = await response.json()
            took = time.perf_counter() - start
            request = response.headers.get("x-baseload-request-id", "")
            if response.status != 200:
                error = str((answer.get("error") or {}).get("code") or f"http {response.status}")
        async with session.get(f"{url}/v1/requests/{request}") as response:
            row = await response.json() if response.status == 200 else {}
    except (aiohttp.ClientError, TimeoutError, ValueError) as failure:
        error = type(failure).__name__
        took = took or time.perf_counter() - start
    attempts: list[Mapping[str, Any]] = row.get("attempts") or []
    passed = error is None and any(attempt["accepted"] for attempt in attempts)
    usd, joules = priced(attempts, hardware)
    return TaskRun(
        task.id,
        task.kind,
        candidate.model,
        candidate.policy,
        repeat,
        passed and task.is_right(answer["choices"][0]["message"].get("content")),
        usd,
        joules,
        took,
        len(attempts),
        sum(_is_local(attempt) for attempt in attempts),
        error,
    )


def _is_local(attempt: Mapping[str, Any]) -> bool:
    return attempt["backend"] == "local"


def priced(attempts: Sequence[Mapping[str, Any]], hardware: Hardware | None) -> tuple[float | None, float | None]:
    """Dollars and joules of a request: what the ledger booked, else its device time at the profile's hourly cost and watts.
    None where one of its attempts can't be priced, and where nothing was written down."""
    hour = usd_per_hour(hardware).value if hardware else None
    watts = hardware.watts if hardware else None

    def usd(attempt: Mapping[str, Any]) -> float | None:
        if not _is_local(attempt):
            return attempt["retail_usd"]
        booked, seconds = attempt["internal_usd"], attempt["device_seconds"]
        if booked is not None or seconds is None or hour is None:
            return booked
        return request_usd(seconds, hour)

    def joules(attempt: Mapping[str, Any]) -> float | None:
        if not _is_local(attempt):
            return 0.0
        booked, seconds = attempt["energy_joules"], attempt["device_seconds"]
        if booked is not None or seconds is None or watts is None:
            return booked
        return seconds * watts

    return _sum(attempts, usd), _sum(attempts, joules)


def _sum(attempts: Sequence[Mapping[str, Any]], of: Callable[[Mapping[str, Any]], float | None]) -> float | None:
    values = [of(attempt) for attempt in attempts]
    known = [value for value in values if value is not None]
    return sum(known) if values and len(known) == len(values) else None
