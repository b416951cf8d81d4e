"""vLLM as a child: `vllm serve` in an environment of its own, on loopback, asked as any replica is; started again when it ends.

A pool of one: what had not said its first word when the child ended waits for the next one, up to PATIENCE_S, and is asked
again; what had, ends with a Failure. The child reaches nobody: it is told that there is no hub and no one to report to.
"""

import asyncio
import logging
import os
import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path

import orjson

from ..wire.backend import ModelInfo
from ..wire.chat import ChatRequest, Event, Failure
from ..wire.egress import Egress
from ..wire.errors import ModelFileError
from .child import Child
from .http_replica import HttpReplica
from .pool import Pool, Replica, State
from .wall_share import WallShare

log = logging.getLogger("baseload.vllm")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # between an end and the next start; doubled by each end that came soon
SOON_S = 60.0
STUCK_S = 60.0  # without a sign of health, after which a child that was well is ended
PATIENCE_S = 600.0  # of a request, while the child starts again: it compiles, and reads gigabytes
LOOK_S = 0.2  # between two looks at a child that starts
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
}
OURS = ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "VIRTUAL_ENV")  # of our environment, not of its
SECRET = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD")  # endings of what a model's server has no use for


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """How the child is started. `model` is a folder, or a name in the hub's cache; `name` what clients ask for."""

    python: Path  # of the environment that vLLM is installed in
    model: str
    name: str
    args: tuple[str, ...] = ()  # more of `vllm serve`'s
    start_s: float = 1800.0  # until it must be healthy
    grace_s: float = 10.0  # to end in, when told to


class Vllm:
    """The child and its supervisor. `open` one; `pool` is its Backend; `close` it."""

    def __init__(self, options: VllmOptions, egress: Egress, share: WallShare) -> None:
        self._options, self._egress, self._share = options, egress, share
        self._child: Child | None = None
        self._http: HttpReplica | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._replica = Replica("vllm", self)
        self.restarts = 0
        self.pool: Pool

    @classmethod
    async def open(cls, options: VllmOptions, egress: Egress, share: WallShare) -> "Vllm":
        """Start the child and wait until it is healthy. Raises ModelFileError, in one line, where it does not get so."""
        self = cls(options, egress, share)
        try:
            await self._begin()
            if not await self._healthy():
                why = next((line for line in reversed(self._tail()) if "rror" in line), "it did not get ready in time")
                raise ModelFileError(f"vLLM cannot serve {options.name}: {why[-300:]}")
            info = ModelInfo(options.name, await self._context_length(), tools="--enable-auto-tool-choice" in options.args)
            self.pool = Pool(info, [self._replica], patience_s=PATIENCE_S, share=share)
            await self.pool.start()
        except BaseException:
            await self._end()
            raise
        self._keeper = asyncio.create_task(self._keep())
        return self

    async def close(self) -> None:
        """End the child; what it still answers is cut."""
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
            await self.pool.close()
        await self._end()

    async def metrics(self) -> bytes | None:
        """Its own numbers, in Prometheus' text format; None while it starts."""
        return await self._http.page("/metrics") if self._http else None

    # ------------------------------------------------------------------------------- as the pool's source

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        """See pool.Source."""
        if self._http is None:
            yield Failure("vLLM is being started again.", 503, "server_error", "no_replica", retryable=True, retry_after=5)
            return
        async with aclosing(self._http.generate(request)) as events:
            async for event in events:
                yield event

    async def probe(self) -> State | None:
        """See pool.Source."""
        if self._http is None or self._child is None or self._child.status is not None:
            return "down"
        return await self._http.probe()

    async def disconnect(self) -> None:
        """See pool.Source."""
        if self._http is not None:
            await self._http.disconnect()

    # ------------------------------------------------------------------------------- the child's life

    async def _begin(self) -> None:
        port, key, o = await _free_port(), secrets.token_hex(16), self._options
        # What `vllm serve` runs; the command itself fails where the package goes by another name, as the build for CPUs does.
        serve = (str(o.python), "-m", "vllm.entrypoints.openai.api_server", "--model", o.model, "--served-model-name", o.name)
        told = ("--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log", "--enable-prompt-tokens-details")
        try:
            self._child = await Child.start((*serve, *told, *o.args), child_env(os.environ, key), log, o.grace_s)
        except OSError as error:
            raise ModelFileError(f"vLLM cannot be started: there is no {o.python}") from error
        self._http = HttpReplica("vllm", f"http://127.0.0.1:{port}/v1", o.name, self._egress, key)

    async def _healthy(self) -> bool:
        """Whether the child got healthy before it ended and in its time."""
        until = time.monotonic() + self._options.start_s
        while self._child is not None and self._child.status is None and time.monotonic() < until:
            if await self.probe() == "up":
                return True
            await asyncio.sleep(LOOK_S)
        return False

    async def _keep(self) -> None:
        pause = FIRST_PAUSE_S
        while True:
            well = time.monotonic()
            await self._until_it_ends()
            self.pool.mark(self._replica, "down")
            status = await self._end()
            pause = FIRST_PAUSE_S if time.monotonic() - well > SOON_S else pause
            while True:
                log.error("vLLM has ended (%s); it is started again in %.0f s", _spelled(status), pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
                self.restarts += 1
                with suppress(ModelFileError):  # its environment has gone; it may come back
                    await self._begin()
                if await self._healthy():
                    break
                status = await self._end()
            self.pool.mark(self._replica, "up")

    async def _until_it_ends(self) -> None:
        """Returns when the child has ended, or has given no sign of health for too long."""
        assert self._child is not None
        ended, well = asyncio.create_task(self._child.wait()), time.monotonic()
        try:
            while not ended.done():
                await asyncio.wait({ended}, timeout=1.0)
                well = time.monotonic() if self._replica.state == "up" else well
                if time.monotonic() - well > STUCK_S:
                    log.error("vLLM has not answered for %.0f s and is ended", STUCK_S)
                    return
        finally:
            ended.cancel()

    async def _end(self) -> int | None:
        child, http, self._http = self._child, self._http, None
        if http is not None:
            await http.disconnect()
        return await child.stop() if child is not None else None

    async def _context_length(self) -> int:
        assert self._http is not None
        try:
            return int(orjson.loads(await self._http.page("/v1/models") or b"")["data"][0]["max_model_len"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ModelFileError("vLLM does not say how long its model's context is") from error

    def _tail(self) -> list[str]:
        return list(self._child.tail) if self._child else []


def child_env(env: Mapping[str, str], key: str) -> dict[str, str]:
    """The child's environment: ours without what is ours alone, with no way out and a key that nobody else knows."""
    kept = {n: v for n, v in env.items() if n not in OURS and not n.startswith("BASELOAD_") and not n.endswith(SECRET)}
    return kept | OFFLINE | {"VLLM_API_KEY": key, "PYTHONUNBUFFERED": "1"}


async def _free_port() -> int:
    """A port of loopback that is free now. If somebody else takes it first, the child ends, and the next one gets another."""
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port


def _spelled(status: int | None) -> str:
    return f"signal {status - 128}" if status is not None and status > 128 else f"status {status}"
