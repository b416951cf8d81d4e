"""How long the console's questions to a large ledger take: `python -m baseload.benchmarks.console_books --requests 1000000`.

The ledger is made up: requests spread evenly over 30 days, 40 keys, 15% escalated, a fifth judged by a check.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from ..ledger.ledger import Ledger
from ..ledger.recent import recent
from ..ledger.rows import AttemptRow, OutcomeRow, RequestRow
from ..ledger.schema import TABLES, values
from ..server.console.books import WINDOWS, History, books

DAYS = 30
BATCH = 5000


def made_up(count: int, now: float, seed: int = 1) -> Iterator[list[Any]]:
    """The rows of `count` requests, each request's together."""
    rng = random.Random(seed)
    places = [{"name": name, "allowed": True, "gate": "", "reason": ""} for name in ("local", "acme/big")]
    notes = [{"by": "predictor", "why": "the local model will do", "numbers": {"gap": 0.1, "threshold": 0.3}}]
    decision = {"asked": "auto", "mode": "auto", "rungs": places, "checks": ["schema"], "buffered": True, "notes": notes}
    for n in range(count):
        name, ts, hard = f"req_{rng.randbytes(12).hex()}", now - DAYS * 86_400 * (1 - n / count), rng.random() < 0.15
        key = f"key{rng.randrange(40)}"
        local = AttemptRow(
            rng.randbytes(16).hex(), name, 0, "local", "small", ts, 0.05, 1.2, rng.randrange(4000), rng.randrange(500), 20,
            "stop", not hard, internal_usd=2e-5,
        )  # fmt: skip
        route, status = "acme/big" if hard else "local", "failed" if rng.random() < 0.01 else "done"
        rows: list[Any] = [RequestRow(name, ts, "openai_chat", "auto", route, decision, status, True, ts + 1.5, key), local]
        if hard:
            more: dict[str, Any] = {
                "first_token_s": 0.3,
                "duration_s": 0.9,
                "finish_reason": "stop",
                "accepted": True,
                "retail_usd": 4e-4,
            }
            tokens = {"prompt_tokens": rng.randrange(4000), "completion_tokens": rng.randrange(500)}
            rows.append(AttemptRow(rng.randbytes(16).hex(), name, 1, "acme", "big", ts + 1.2, **tokens, **more))
        if rng.random() < 0.2:
            rows.append(OutcomeRow(name, local.id, "schema", not hard, ts=ts))
        yield rows


def fill(engine: Engine, count: int, now: float) -> None:
    """Write them, in batches and not durably."""
    waiting: dict[type, list[dict[str, Any]]] = {kind: [] for kind in TABLES}

    def write() -> None:
        with engine.begin() as connection:
            for kind, rows in waiting.items():
                if rows:
                    connection.execute(TABLES[kind].insert(), rows)
                    rows.clear()

    for n, rows in enumerate(made_up(count, now), 1):
        for row in rows:
            waiting[type(row)].append(values(row))
        if n % BATCH == 0:
            write()
    write()


def timed(ask: Callable[[], Any]) -> tuple[float, Any]:
    """(milliseconds, answer)"""
    begun = time.perf_counter()
    answer = ask()
    return (time.perf_counter() - begun) * 1000, answer


def measure(engine: Engine, now: float) -> dict[str, Any]:
    """Milliseconds of each question; of a window the longest call, the sum of all until it is whole, and the next one."""
    found: dict[str, Any] = {
        "newest": timed(lambda: recent(engine))[0],
        "of one status": timed(lambda: recent(engine, "failed"))[0],
    }
    found["of a status that nobody has"] = timed(lambda: recent(engine, "interrupted"))[0]
    for name in WINDOWS:
        history, calls, steps = History(), [], [None]
        while None in steps:
            took, steps = timed(lambda history=history, name=name: history.window(engine, name, now))
            calls.append(took)
        again, steps = timed(lambda history=history, name=name: history.window(engine, name, now))
        drawn, page = timed(lambda steps=steps, name=name: books(steps, name, ("openai", "gpt-4o-mini"), {}))
        whole = {"requests": page["total"]["requests"], "calls": len(calls), "longest": max(calls), "whole": sum(calls)}
        found[name] = whole | {"again": again, "summed": drawn}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--ledger", type=Path, help="an existing ledger, whose newest request is taken for now")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        now = time.time()
        ledger = Ledger.open(f"sqlite:///{asked.ledger or Path(folder) / 'ledger.db'}")
        if asked.ledger:
            now = recent(ledger.engine, limit=1)[0]["ts"]
        else:
            fill(ledger.engine, asked.requests, now)
        print(json.dumps(measure(ledger.engine, now), indent=2))
        ledger.close()


if __name__ == "__main__":
    main()
