"""What the server's own Python costs: CPU time for each streamed token, with a model that takes none.

The real server, router, ledger, tokenizer and engine run in a child; only the decoder's step is replaced, by one that sleeps as
long as the native step takes (outside of the interpreter, as that does) and always says the same word. A plain client in this
process reads N streams. `--profile` prints where the time goes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil

from ..kernels.spec import StepBatch, StepOutput
from ..runtime.engine import Engine, EngineConfig
from ..runtime.local_backend import LocalBackend, always
from ..runtime.models.model_file import load_model

WORD = b"GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n"
N_TOKENS = 256


class SleepingRunner:
    """A decoder that thinks of nothing: `step_s` a step, then token `word` for every row."""

    def __init__(self, vocab: int, step_s: float, word: int) -> None:
        self.vocab, self.context_length = vocab, 4096
        self._step_s, self._word = step_s, word

    def run(self, batch: StepBatch) -> StepOutput:
        """See ModelRunner.run."""
        time.sleep(self._step_s)
        n = len(batch.logit_rows)
        return StepOutput(np.full(n, self._word, np.int32), np.ones(n, np.bool_), np.empty((n, 0), np.float32))


def serve(port: int, path: Path, step_s: float, profile: bool) -> None:
    """The child: a server on `port` until it is told to stop."""
    from ..ledger.ledger import Ledger
    from ..router import Policy, Router
    from ..server.run import run
    from ..server.services import Services
    from ..server.settings import LogSettings, ServerSettings, Settings

    async def services() -> Services:
        model = load_model(path)
        word = model.tokenizer.encode(" word", specials=False)[0]
        runner = SleepingRunner(model.config.decoder.vocab, step_s, word)
        engine = Engine(runner, model.tokenizer, EngineConfig(n_pages=8192, max_guess=0))
        ledger = Ledger.open(f"sqlite:///{tempfile.mkdtemp()}/ledger.db")
        router = Router(
            [LocalBackend(model, always(engine), "sleeper", engine.longest)], {}, Policy(False, frozenset(), ()), ledger
        )
        engine.start()
        return Services(router, ledger, lambda: {"sleeper": engine})

    settings = Settings(server=ServerSettings(port=port), log=LogSettings(level="warning"))
    if not profile:
        return run(services, settings)
    import cProfile
    import pstats

    profiler = cProfile.Profile(time.thread_time)  # of the event loop's thread
    profiler.runcall(run, services, settings)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(35)


async def stream(port: int, n: int, endpoint: str) -> int:
    """`n` streams at once, read to their end: the bytes that came."""
    body = b'{"model":"local","prompt":"Hi","max_tokens":%d,"temperature":0,"ignore_eos":true,"stream":true}' % N_TOKENS
    if endpoint == "chat":
        body = body.replace(b'"prompt":"Hi"', b'"messages":[{"role":"user","content":"Hi"}]')
    path = b"/v1/chat/completions" if endpoint == "chat" else b"/v1/completions"
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n" % path
    request = head + b"Content-Length: %d\r\n\r\n" % len(body) + body

    async def one() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        got = await reader.read(-1)
        writer.close()
        assert b"[DONE]" in got, got[:500]
        return len(got)

    return sum(await asyncio.gather(*(one() for _ in range(n))))


def measure(port: int, child: subprocess.Popen[bytes], n: int, endpoint: str) -> float:
    """Microseconds of the server's CPU time for each streamed token."""
    process = psutil.Process(child.pid)
    asyncio.run(stream(port, n, endpoint))  # warms up
    before = process.cpu_times()
    asyncio.run(stream(port, n, endpoint))
    after = process.cpu_times()
    used = after.user + after.system - before.user - before.system
    return used / (n * N_TOKENS) * 1e6


def main(arguments: Sequence[str] | None = None) -> int:
    """A row for each number of streams."""
    parser = argparse.ArgumentParser(prog="server_cost", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="model file, for its tokenizer and template")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--endpoint", choices=("chat", "completions"), default="chat")
    parser.add_argument("--step-ms", type=float, default=10.0)
    parser.add_argument("--port", type=int, default=8797)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(options.port, options.model, options.step_ms / 1e3, options.profile)
        return 0
    again = [sys.executable, "-m", __spec__.name, *(arguments or sys.argv[1:]), "--serve"]
    child = subprocess.Popen(again, env=os.environ | {"BASELOAD_HOME": tempfile.mkdtemp()})
    try:
        asyncio.run(_ready(options.port))
        print(f"{'streams':>8} {'us/token':>9}")
        for n in options.streams:
            print(f"{n:>8} {measure(options.port, child, n, options.endpoint):>9.1f}", flush=True)
    finally:
        child.terminate()
        child.wait(30)
    return 0


async def _ready(port: int) -> None:
    for _ in range(300):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(WORD)
            if b" 200 " in await reader.readline():
                return
        except OSError:
            pass
        await asyncio.sleep(0.1)
    raise TimeoutError("the server did not start")


if __name__ == "__main__":
    sys.exit(main())
