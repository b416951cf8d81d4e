"""`baseload bench ledger`: CPU that the books take of each request, at a steady rate.

Real rows go into a real ledger at `--rate` requests a second, as the router writes them: the request's beginning, its attempt's
beginning and end (priced and counted), its end; with `--checks` a verdict for each, and in the mode `supplier` also the egress
row that must be on the disk before the call goes out. The process' CPU time, of all its threads, is compared with that of the
same loop without a ledger. What is reported is the median of the rounds, and the least and the most.
"""

from __future__ import annotations

import asyncio
import json as json_module
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..ledger import AttemptRow, EgressRow, Ledger, OutcomeRow, RequestRow
from ..ledger.energy import Sampler
from ..ledger.machine import Machine
from ..ledger.machine_cost import profile
from ..ledger.rows import new_id
from .command import run_command
from .machine import describe

TICK_S = 0.002  # how often requests begin, and those of the tick before end
TARGET_MS = 0.3
RUNG: dict[str, Any] = {"name": "tiny", "supplier": "", "allowed": True, "gate": "", "reason": ""}
DECISION: dict[str, Any] = {
    "mode": "auto", "buffered": False, "rungs": [RUNG, RUNG | {"name": "far/big", "supplier": "far"}],
    "notes": [{"by": "predictor", "why": "the local model will do", "numbers": {"gap": 0.031, "threshold": 0.2}}],
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """CPU milliseconds for each request, by mode. `without_ms` is the loop's own, already taken off."""

    mode: str
    rate: int
    rounds: int
    cpu_ms: float
    least_ms: float
    most_ms: float
    without_ms: float
    rows: int
    late: float  # share of the time that the loop was behind its rate at its end


def ledger_of(place: Path) -> Ledger:
    """A ledger that prices what it counts, as a server's does."""
    opened, box = Ledger.open(f"sqlite:///{place}/ledger.db"), profile("example-workstation")
    opened.machine = Machine(box, Sampler([], box, lambda: 0.0, opened.add))
    return opened


class Traffic:
    """Requests that begin and end; without a ledger only the loop turns."""

    def __init__(self, ledger: Ledger | None, mode: str, checks: bool) -> None:
        self._ledger, self._mode, self._checks = ledger, mode, checks
        self._open: list[tuple[RequestRow, AttemptRow]] = []
        self._dialling: set[asyncio.Task[None]] = set()
        self.rows = 0

    def turn(self, n: int) -> None:
        """End what began in the last turn, and begin `n` more."""
        ending, self._open = self._open, []
        ids = [f"req_{uuid.uuid4().hex}" for _ in range(n)]  # the server's, with a ledger or without
        if self._ledger is None:
            return
        for request, attempt in ending:
            self._end(self._ledger, request, attempt)
        began = [self._begin(self._ledger, id) for id in ids]
        if self._mode == "supplier":
            tasks = [asyncio.create_task(self._dial(self._ledger, request)) for request, _ in began]
            self._dialling |= set(tasks)
            for task in tasks:
                task.add_done_callback(self._dialling.discard)
        self._open = began

    async def dialled(self) -> None:
        """Return when every call has its leave."""
        await asyncio.gather(*self._dialling)

    def _begin(self, ledger: Ledger, id: str) -> tuple[RequestRow, AttemptRow]:
        now = time.time()
        backend = "far" if self._mode == "supplier" else "local"
        request = RequestRow(id, now, "openai_chat", "auto", decision=DECISION, stream=True)
        attempt = AttemptRow(new_id(), request.id, 0, backend, "tiny", now)
        ledger.add(request)
        ledger.add(attempt)
        self.rows += 2
        return request, attempt

    async def _dial(self, ledger: Ledger, request: RequestRow) -> None:
        await ledger.add_synced(EgressRow(uuid.uuid4().hex, time.time(), "far", 443, "model", request.id, True, "allowed"))
        self.rows += 1

    def _end(self, ledger: Ledger, request: RequestRow, attempt: AttemptRow) -> None:
        numbers = {
            "prompt_tokens": 900,
            "completion_tokens": 120,
            "cached_tokens": 640,
            "duration_s": 1.0,
            "first_token_s": 0.1,
        }
        local = {"device_seconds": 0.05, "input_seconds": 0.02} if self._mode == "local" else {"retail_usd": 0.0031}
        row = ledger.ended(replace(attempt, accepted=True, finish_reason="stop", **numbers, **local))
        ledger.add(row)
        if self._checks:
            ledger.add(OutcomeRow(request.id, attempt.id, "json_schema", True, ts=time.time()))
        ledger.add(replace(request, status="done", finished_ts=time.time(), route="tiny"))
        self.rows += 2 + self._checks


async def spend(traffic: Traffic, rate: int, seconds: float) -> tuple[float, int, float]:
    """(CPU seconds, requests, share of the time that it was late at the end) of a steady rate."""
    began, cpu, sent, turn = time.monotonic(), time.process_time(), 0, 0
    while (now := time.monotonic() - began) < seconds:
        due = int(rate * min(now + TICK_S, seconds)) - sent
        traffic.turn(due)
        sent, turn = sent + due, turn + 1
        await asyncio.sleep(max(0.0, began + turn * TICK_S - time.monotonic()))
    left = int(rate * seconds) - sent  # of a loop that was late
    for n in (left, 0):
        traffic.turn(n)
    await traffic.dialled()
    late = (time.monotonic() - began) / seconds - 1
    return time.process_time() - cpu, sent + left, late


def measure(mode: str, rate: int, seconds: float, rounds: int, checks: bool) -> Line:
    """Rounds with a ledger and without one, in turns."""
    taken, own, rows, lateness = [], [], 0, []
    for _ in range(rounds):
        cpu, sent, _ = asyncio.run(spend(Traffic(None, mode, checks), rate, seconds))
        own.append(cpu / sent * 1e3)
        with tempfile.TemporaryDirectory() as place:
            ledger = ledger_of(Path(place))
            asyncio.run(spend(Traffic(ledger, mode, checks), rate, min(1.0, seconds)))  # warms up
            ledger.flush()
            before = time.process_time()
            traffic = Traffic(ledger, mode, checks)
            _, sent, late = asyncio.run(spend(traffic, rate, seconds))
            ledger.flush()  # what was put off is part of it
            taken.append((time.process_time() - before) / sent * 1e3)
            rows, lateness = rows + traffic.rows, [*lateness, late]
            ledger.close()
    without = median(own)
    spent = [each - without for each in taken]
    return Line(mode, rate, rounds, median(spent), min(spent), max(spent), without, rows, max(lateness))


def ledger(
    rate: Annotated[int, typer.Option(min=1, help="Requests a second.")] = 500,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each round.")] = 5.0,
    rounds: Annotated[int, typer.Option(min=1, help="Fresh ledgers for each mode.")] = 3,
    checks: Annotated[bool, typer.Option("--checks", help="A verdict for each answer too.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the numbers there.")] = None,
) -> None:
    """CPU that the books take of each request."""
    lines = [measure(mode, rate, seconds, rounds, checks) for mode in ("local", "supplier")]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("MODE", "REQUESTS/S", "CPU MS/REQUEST", "LEAST", "MOST", "LOOP'S OWN", "ROWS", "LATE"):
        table.add_column(column, justify="left" if column == "MODE" else "right")
    for line in lines:
        times = [f"{value:.3f}" for value in (line.cpu_ms, line.least_ms, line.most_ms, line.without_ms)]
        table.add_row(line.mode, str(line.rate), *times, f"{line.rows:,}", f"{line.late:.1%}")
    Console(highlight=False).print(table)
    over = [line.mode for line in lines if line.cpu_ms > TARGET_MS]
    print(f"wanted: at most {TARGET_MS} ms; " + (f"above it: {', '.join(over)}" if over else "kept"))
    if json:
        report = {"machine": describe(), "target_ms": TARGET_MS, "lines": [asdict(line) for line in lines]}
        json.write_text(json_module.dumps(report, indent=2))


def main(words: Sequence[str] | None = None) -> int:
    """`baseload bench ledger`."""
    return run_command(ledger, "ledger", words)


if __name__ == "__main__":
    raise SystemExit(main())
