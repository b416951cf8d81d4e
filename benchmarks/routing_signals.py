"""Whether a local answer's signals say if it is right: SmolLM2 on the 200 pieces of work. Prints a table; no test.

    python -m baseload.benchmarks.routing_signals [--seed 7] [--kind extract ...] [--rows FILE]

FILE (JSON lines) keeps each piece's numbers as they come; what it holds is not done again.

Signals: the tokens' margins (mean, least), the answer's length, the agreement of three samples with it. The area under the ROC
curve is the chance that a right answer has more of the signal than a wrong one: .5 says nothing. Within a kind: they differ
in both. The interval is a bootstrap's over the answers.
"""

import argparse
import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..router import checks
from ..router.checks import Answer, Permissions, calls_of
from ..router.probes import SAMPLES, TEMPERATURE
from ..router.signals import agreement
from ..runtime.engine import EngineConfig
from ..runtime.loading import Loader, LoadOptions
from ..runtime.local_backend import LocalBackend, always
from ..runtime.store import Store, default_root
from ..wire.backend import Backend
from ..wire.chat import ChatRequest, Event, Finish, TextDelta, ToolCallDelta, Usage
from ..wire.openai_chat import parse_request
from .routed_tasks import pieces

MODEL = "smollm2-135m-instruct"
DRAWS = 2000
AT_ONCE = 8


async def answered(backend: Backend, body: Any, **sampling: Any) -> tuple[ChatRequest, Answer, Usage]:
    """One answer, as the router's checks see it."""
    request = parse_request(body)
    request = replace(request, sampling=replace(request.sampling, **sampling))
    events: list[Event] = [event async for event in backend.generate(request)]
    text = "".join(e.text for e in events if isinstance(e, TextDelta))
    finish = next((e.reason for e in events if isinstance(e, Finish)), "")
    usage = next(e for e in reversed(events) if isinstance(e, Usage))
    return request, Answer(text, finish, calls_of([e for e in events if isinstance(e, ToolCallDelta)]), request), usage


async def look(backend: Backend, piece: Any, gate: asyncio.Semaphore) -> dict[str, Any]:
    """A piece's signals, and whether its answer passes its checks and is the right one."""
    async with gate:
        body = piece.body(MODEL)
        request, answer, usage = await answered(backend, body, margins=True)
        warm = [
            await answered(backend, {**body, "temperature": TEMPERATURE}, max_tokens=2 * usage.completion_tokens + 16, seed=n)
            for n in range(SAMPLES)
        ]
    judged = await asyncio.to_thread(checks.run, checks.checks_of(request, Permissions(True)), answer)
    passed = all(verdict.passed for verdict in judged)
    right = passed and piece.is_right({"content": answer.text})
    return {
        "prompt": piece.prompt, "kind": piece.kind,
        "passed": passed, "right": right, **(usage.signals or {}), "tokens": -usage.completion_tokens,
        "agreement": agreement([answer.text, *(sample.text for _, sample, _ in warm)]),
    }  # fmt: skip


def auc(score: np.ndarray, right: np.ndarray) -> float:
    """Ties count half. NaN where all are right, or none."""
    good, bad = score[right], score[~right]
    if not len(good) or not len(bad):
        return float("nan")
    return float((good[:, None] > bad[None]).mean() + (good[:, None] == bad[None]).mean() / 2)


def line(name: str, rows: list[dict[str, Any]], label: str) -> str:
    right = np.array([row[label] for row in rows])
    cells = [f"{name:10} {label:6} {right.sum():4}/{len(right)}"]
    chance = np.random.default_rng(0)
    for signal in ("margin_mean", "margin_least", "agreement", "tokens"):
        score = np.array([row.get(signal, np.nan) for row in rows], float)
        drawn = chance.integers(0, len(rows), (DRAWS, len(rows)))
        ends = np.array([auc(score[i], right[i]) for i in drawn])
        low, high = np.nanpercentile(ends, [2.5, 97.5]) if np.isfinite(ends).any() else (np.nan, np.nan)
        cells.append(f"{signal} {auc(score, right):.3f} [{low:.3f}, {high:.3f}]")
    return "  ".join(cells)


async def overhead(backend: Backend, n: int = 5) -> tuple[float, float]:
    """Seconds of an answer of 160 tokens without margins and with, one at a time, in turns; the medians."""
    times: dict[bool, list[float]] = {False: [], True: []}
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Tell me of the sea."}],
        "temperature": 0,
        "max_tokens": 160,
    }
    for turn in range(2 * n):
        began = time.perf_counter()
        await answered(backend, body, margins=bool(turn % 2), ignore_eos=True)
        times[bool(turn % 2)].append(time.perf_counter() - began)
    return float(np.median(times[False])), float(np.median(times[True]))


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--kind", action="append", help="extract, sum, call or program; else all")
    parser.add_argument("--rows", type=Path)
    given = parser.parse_args()
    loader = Loader(LoadOptions(EngineConfig(), 256))
    opened = loader.open(Store(default_root()).ensure(MODEL))
    engine = loader.start(opened)
    backend = LocalBackend(opened.model, always(engine), MODEL, opened.longest)
    try:
        gate = asyncio.Semaphore(AT_ONCE)
        kept = given.rows.read_text().splitlines() if given.rows and given.rows.exists() else []
        rows = [json.loads(row) for row in kept]
        done = {row["prompt"] for row in rows}
        asked = [piece for piece in pieces(given.seed) if piece.kind in (given.kind or (piece.kind,))]
        left = [look(backend, piece, gate) for piece in asked if piece.prompt not in done]
        for coming in asyncio.as_completed(left):
            rows.append(await coming)
            if given.rows:
                with given.rows.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
        without, with_them = await overhead(backend)
    finally:
        backend.close()
        engine.close()
        loader.close()
    for kind in sorted({row["kind"] for row in rows}):
        some = [row for row in rows if row["kind"] == kind]
        print(line(kind, some, "right"))
    print(line("all", rows, "right"), flush=True)
    print(f"160 tokens: {without * 1000:.0f} ms without margins, {with_them * 1000:.0f} ms with")


if __name__ == "__main__":
    asyncio.run(main())
