"""The engine's thread, and the asyncio face over it: submit, abort, a stream of plain outputs.

The thread alone touches an EngineCore. The event loop hands it work through an inbox and is woken once a step, with all of
the step's outputs. A watchdog looks at the thread: a step that takes too long is stuck, its requests end, and a new core and
thread take over as soon as the stuck step lets the model go.
"""

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from ...wire.chat import Failure
from ...wire.errors import RateLimited, Unavailable
from .config import EngineConfig
from .core import EngineCore, EngineTokenizer, Outputs
from .model_runner import ModelRunner
from .request import GenerationRequest, TokenOutput

log = logging.getLogger("baseload.engine")

SWITCH_S = 5e-4  # beside a busy thread a GIL-free call comes back this much sooner than with Python's 5 ms
RESTARTED = Failure("The engine was restarted.", 503, "server_error", "engine_restarted", retryable=True, retry_after=1.0)
DRAINED = Failure("The server is shutting down.", 503, "server_error", "shutting_down", retryable=True, retry_after=1.0)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine in numbers. Counters never fall, not even over a restart."""

    running: int
    waiting: int
    pages_total: int
    pages_free: int  # hold nothing
    pages_cached: int  # hold prefixes that nobody uses now; can be had at once
    prefix_query_tokens: int
    prefix_hit_tokens: int
    prompt_tokens: int  # computed, not taken from the cache
    generation_tokens: int
    preemptions: int
    steps: int
    restarts: int
    last_step_age_s: float  # since the thread last began or ended a step
    alive: bool


class GenerationStream:
    """One request's outputs, to be iterated once. Leaving it early, or `aclose`, stops the work within a step."""

    def __init__(self, engine: "Engine", request_id: str, loop: asyncio.AbstractEventLoop) -> None:
        self._engine, self.request_id, self.loop = engine, request_id, loop
        self._outputs: asyncio.Queue[TokenOutput] = asyncio.Queue()
        self._ended = False

    def put(self, output: TokenOutput) -> None:
        """The engine's side; on the event loop only."""
        self._outputs.put_nowait(output)

    async def __aiter__(self) -> AsyncIterator[TokenOutput]:
        try:
            while not self._ended:
                output = await self._outputs.get()
                self._ended = output.is_last
                yield output
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Stop. Nothing happens if the stream has ended."""
        if not self._ended:
            self._ended = True
            self._engine.abort(self.request_id)


@dataclass(slots=True, eq=False)
class _Worker:
    """One generation of the engine: a core, its thread, and what waits for it."""

    core: EngineCore
    inbox: deque[Callable[[EngineCore], None]] = field(default_factory=deque)
    wake: threading.Condition = field(default_factory=threading.Condition)
    streams: dict[str, GenerationStream] = field(default_factory=dict)
    closed: bool = False
    beat: float = 0.0  # the clock when a step last began or ended
    ready: bool = False  # it has the model
    stepping: bool = False


class Engine:
    """Runs a model for many requests at once. Call everything but `stats` from an event loop."""

    def __init__(
        self,
        runner: ModelRunner,
        tokenizer: EngineTokenizer,
        config: EngineConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self._make_core = lambda: EngineCore(runner, tokenizer, config)
        self._clock = clock
        self._model = threading.Lock()  # a stuck step holds it: the next generation waits for it
        self._worker = _Worker(self._make_core(), beat=clock())
        self._before = dict.fromkeys(_COUNTERS, 0)  # of earlier generations
        self._restarts = 0
        self._draining = False
        self._stop = threading.Event()

    def start(self) -> None:
        """Start the thread and its watchdog."""
        sys.setswitchinterval(SWITCH_S)
        self._start_worker(self._worker)
        threading.Thread(target=self._watch, name="engine-watchdog", daemon=True).start()

    @property
    def longest(self) -> int:
        """The longest sequence, in tokens."""
        return self._worker.core.longest

    def submit(self, request: GenerationRequest) -> GenerationStream:
        """Queue `request`. Raises BadRequest, ContextLengthExceeded, RateLimited (queue full) or Unavailable."""
        worker = self._worker
        if self._draining or worker.closed:
            raise Unavailable("The server is shutting down.", code="shutting_down")
        worker.core.check(request)
        if len(worker.core.scheduler.waiting) + len(worker.inbox) >= self.config.max_queue:
            raise RateLimited("Too many requests are waiting; try again later.", code="queue_full")
        stream = GenerationStream(self, request.id, asyncio.get_running_loop())
        worker.streams[request.id] = stream
        self._tell(worker, lambda core: core.submit(request))
        return stream

    def abort(self, request_id: str) -> None:
        """Stop a request within one step. An unknown id is one that has ended."""
        worker = self._worker
        if worker.streams.pop(request_id, None) is not None:
            self._tell(worker, lambda core: core.abort(request_id))

    async def drain(self, timeout_s: float) -> None:
        """Take no more requests, wait for the running ones, and end with a Failure those that take longer."""
        self._draining = True
        deadline = self._clock() + timeout_s
        while self._worker.streams and self._clock() < deadline:
            await asyncio.sleep(0.02)
        for request_id, stream in list(self._worker.streams.items()):
            self.abort(request_id)
            stream.put(TokenOutput(failure=DRAINED))

    def close(self) -> None:
        """Stop the thread after the step it is in."""
        self._stop.set()
        self._draining = True
        self._retire(self._worker)

    def stats(self) -> EngineStats:
        """Safe from any thread."""
        worker, core = self._worker, self._worker.core
        counted = {name: self._before[name] + value for name, value in _counters(core).items()}
        return EngineStats(
            running=len(core.scheduler.running),
            waiting=len(core.scheduler.waiting) + len(worker.inbox),
            pages_total=self.config.n_pages,
            pages_free=core.cache.n_free,
            pages_cached=core.cache.tree.n_unused,
            restarts=self._restarts,
            last_step_age_s=self._clock() - worker.beat,
            alive=worker.ready and not worker.closed and not self._is_stuck(worker),
            **counted,
        )

    def check_integrity(self) -> None:
        """Raise AssertionError if a page or a sequence is lost. Only when idle."""
        self._worker.core.check_integrity()

    # ------------------------------------------------------------------------------------- the thread

    def _start_worker(self, worker: _Worker) -> None:
        threading.Thread(target=self._run, args=(worker,), name="engine", daemon=True).start()

    def _run(self, worker: _Worker) -> None:
        with self._model:
            worker.ready, worker.beat = True, self._clock()
            while self._wait(worker):
                outputs = self._step(worker)
                if worker.closed:  # declared stuck meanwhile: these requests have been told already
                    return
                self._deliver(worker, outputs)

    def _wait(self, worker: _Worker) -> bool:
        """Take in what has come, and sleep while there is nothing to do. False: this generation is over."""
        with worker.wake:
            while not (worker.inbox or worker.core.is_busy or worker.closed):
                worker.wake.wait()
        while worker.inbox and not worker.closed:
            worker.inbox.popleft()(worker.core)
        return not worker.closed

    def _step(self, worker: _Worker) -> Outputs:
        worker.beat, worker.stepping = self._clock(), True
        try:
            return worker.core.step()
        except Exception:  # the core promises not to; a broken promise must not cost the thread
            log.exception("the engine's step failed; all requests end")
            return worker.core.fail_all(RESTARTED)
        finally:
            worker.beat, worker.stepping = self._clock(), False

    def _deliver(self, worker: _Worker, outputs: Outputs) -> None:
        """Wake each event loop once, with all that this step brought its streams."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[GenerationStream, TokenOutput]]] = {}
        for request_id, output in outputs:
            stream = worker.streams.pop(request_id, None) if output.is_last else worker.streams.get(request_id)
            if stream is not None:
                by_loop.setdefault(stream.loop, []).append((stream, output))
        for loop, batch in by_loop.items():
            _call(loop, batch)

    def _tell(self, worker: _Worker, message: Callable[[EngineCore], None]) -> None:
        with worker.wake:
            worker.inbox.append(message)
            worker.wake.notify()

    # ------------------------------------------------------------------------------------- the watchdog

    def _watch(self) -> None:
        while not self._stop.wait(min(0.5, self.config.watchdog_s / 4)):
            worker = self._worker
            if self._is_stuck(worker) and worker.ready:
                self._restart(worker)

    def _is_stuck(self, worker: _Worker) -> bool:
        return worker.stepping and self._clock() - worker.beat > self.config.watchdog_s

    def _restart(self, stuck: _Worker) -> None:
        log.error("no step for %.1f s; the engine is restarted. Stacks:\n%s", self.config.watchdog_s, _stacks())
        for name, value in _counters(stuck.core).items():
            self._before[name] += value
        fresh = _Worker(self._make_core(), beat=self._clock())
        self._worker, self._restarts = fresh, self._restarts + 1
        self._retire(stuck)
        while stuck.streams:
            _, stream = stuck.streams.popitem()
            _call(stream.loop, [(stream, TokenOutput(failure=RESTARTED))])
        self._start_worker(fresh)

    def _retire(self, worker: _Worker) -> None:
        with worker.wake:
            worker.closed = True
            worker.wake.notify()


_COUNTERS = ("prefix_query_tokens", "prefix_hit_tokens", "prompt_tokens", "generation_tokens", "preemptions", "steps")


def _counters(core: EngineCore) -> dict[str, int]:
    return {name: core.scheduler.preemptions if name == "preemptions" else getattr(core, name) for name in _COUNTERS}


def _call(loop: asyncio.AbstractEventLoop, batch: list[tuple[GenerationStream, TokenOutput]]) -> None:
    def put() -> None:
        for stream, output in batch:
            stream.put(output)

    try:
        loop.call_soon_threadsafe(put)
    except RuntimeError:  # the loop is closed: nobody listens any more
        log.debug("outputs for a closed event loop were dropped")


def _stacks() -> str:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"--- {names.get(ident, ident)}\n{''.join(traceback.format_stack(frame)[-6:])}"
        for ident, frame in sys._current_frames().items()
    )
