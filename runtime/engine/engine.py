"""The engine's thread, and the asyncio face over it: submit, abort, a stream of plain outputs.

The thread alone touches an EngineCore. The event loop hands it work through an inbox and is woken once a step, with all of
the step's outputs. A watchdog looks at the thread: if it is stuck or dead, its requests end, and a new generation, a core and
a thread of its own, takes over. A generation that is over can come back to life only to find that nobody listens to it and
that it may not use the model.
"""

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from ...kernels.spec import StepBatch, StepOutput
from ...wire.chat import Failure
from ...wire.errors import RateLimited, Unavailable
from ..receipts import Identity
from .config import EngineConfig
from .core import CANCELLED, EngineCore, EngineTokenizer, Outputs, StepRunner
from .kv_store import KvStore, LentStore, StoreStats
from .request import GenerationRequest, TokenOutput
from .step_cost import StepCost

log = logging.getLogger("baseload.engine")

SWITCH_S = 5e-4  # a thread that wants the interpreter waits this long for a busy one; Python's own 5 ms is many a token's time
CLOSE_S = 2.0  # a step that takes longer is left behind
FLUSH_S = 5.0  # what the store has not written by then is computed again some day
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
    prompt_tokens: int  # of requests whose answer has begun
    generation_tokens: int
    guessed_tokens: int  # proposed by looking back (speculative.py)
    kept_tokens: int  # of those
    preemptions: int
    steps: int
    device_seconds: float  # of all steps; what is left of the time was idle
    restarts: int
    last_step_age_s: float
    alive: bool  # the thread is there and not stuck
    kv_store: StoreStats


class GenerationStream:
    """One request's outputs, to be iterated once. Leaving it early, or `aclose`, stops the work within a step."""

    def __init__(self, engine: "Engine", request_id: str, loop: asyncio.AbstractEventLoop) -> None:
        self._engine, self.request_id, self.loop = engine, request_id, loop
        self._outputs: deque[TokenOutput] = deque()
        self._waiter: asyncio.Future[None] | None = None  # of the reader
        self._ended = False

    def put(self, output: TokenOutput) -> None:
        """The engine's side; on the stream's event loop only."""
        self._outputs.append(output)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def __aiter__(self) -> AsyncIterator[TokenOutput]:
        try:
            while not self._ended:
                while not self._outputs:
                    self._waiter = self.loop.create_future()
                    await self._waiter
                output = self._outputs.popleft()
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
class _Generation:
    """A core, its thread, and what waits for it."""

    core: EngineCore
    ready: bool  # nobody else has the model
    last_step: float
    thread: threading.Thread | None = None
    wake: threading.Condition = field(default_factory=threading.Condition)  # guards inbox, streams and over
    inbox: deque[Callable[[], None]] = field(default_factory=deque)
    streams: dict[str, GenerationStream] = field(default_factory=dict)
    busy_since: float | None = None  # when it began the turn that it is in
    over: bool = False
    cost: StepCost = field(default_factory=StepCost)


@dataclass(slots=True)
class _Lease:
    """The model, lent to one generation. A stuck step may still write to the KV pool, so the next generation waits for it,
    and a step that comes too late is refused."""

    runner: StepRunner
    lock: threading.Lock
    over: Callable[[], bool]
    vocab: int
    context_length: int

    def run(self, batch: StepBatch) -> StepOutput:
        """See ModelRunner.run."""
        with self.lock:
            if self.over():
                raise RuntimeError("this generation of the engine is over")
            return self.runner.run(batch)


class Engine:
    """Runs a model for many requests at once. Call everything but `stats` from an event loop's thread.

    `clock` (seconds, monotonic) is what the watchdog and the deadlines go by. `store` keeps the runner's pages; it is started,
    and the engine closes it.
    """

    def __init__(
        self,
        runner: StepRunner,
        tokenizer: EngineTokenizer,
        config: EngineConfig,
        clock: Callable[[], float] = time.monotonic,
        store: KvStore | None = None,
        release: Callable[[], None] | None = None,
        identity: Identity | None = None,
    ) -> None:
        """`release` gives back what the runner holds; called by `close` once nothing runs in it. `identity`: of the model, for
        receipts."""
        self.identity = identity
        self.config, self._store, self._release = config, store, release
        self._runner, self._tokenizer, self._clock = runner, tokenizer, clock
        self._model = threading.Lock()
        self._counted: Counter[str] = Counter()  # by earlier generations
        self._device_seconds = 0.0  # likewise
        self._restarts = 0
        self._draining = False
        self._stop = threading.Event()
        self._now = self._generation(ready=True)

    @property
    def longest(self) -> int:
        """The longest sequence, prompt and answer, in tokens."""
        return self._now.core.longest

    def start(self) -> None:
        """Start the thread and its watchdog."""
        sys.setswitchinterval(SWITCH_S)
        self._start(self._now)
        threading.Thread(target=self._watch, name="engine-watchdog", daemon=True).start()

    def submit(self, request: GenerationRequest) -> GenerationStream:
        """Queue `request`. Raises BadRequest, ContextLengthExceeded, RateLimited (queue full) or Unavailable."""
        now = self._now
        if self._draining:
            raise Unavailable("The server is shutting down.", code="shutting_down")
        now.core.check(request)
        if len(now.streams) >= self.config.max_batch + self.config.max_queue:
            raise RateLimited("Too many requests are waiting; try again later.", code="queue_full")
        if request.id in now.streams:
            raise ValueError(f"request id {request.id!r} is in use")
        stream = GenerationStream(self, request.id, asyncio.get_running_loop())
        with now.wake:
            if not self._is_alive(now):
                raise Unavailable("The engine is being restarted.", code="engine_restarted")
            now.streams[request.id] = stream
            now.inbox.append(lambda: now.core.submit(request))
            now.wake.notify()
        return stream

    def abort(self, request_id: str) -> None:
        """Stop a request within one step; its stream, if anybody still reads it, ends with a Failure. An unknown id is one
        that has ended."""
        self._abort(self._now, request_id, CANCELLED)

    async def drain(self, timeout_s: float) -> None:
        """Take no more requests, wait for the running ones, and end with a Failure those that take longer."""
        self._draining = True
        deadline = self._clock() + timeout_s
        while self._now.streams and self._clock() < deadline:
            await asyncio.sleep(0.02)
        for request_id in list(self._now.streams):
            self._abort(self._now, request_id, DRAINED)
        self._tell_all(self._now, DRAINED)
        if self._store is not None:
            await asyncio.to_thread(self._store.flush, FLUSH_S)

    def close(self) -> None:
        """Stop the thread after the step that it is in. Whoever still waits gets a Failure."""
        self._draining = True
        self._stop.set()
        now = self._now
        with now.wake:
            now.over = True
            now.wake.notify()
        self._tell_all(now, DRAINED)
        if now.thread is not None and now.thread.is_alive():  # one that is only about to start finds that it is over
            now.thread.join(CLOSE_S)
        if self._store is not None:
            self._store.close(CLOSE_S)
        # A step that is stuck for good keeps its memory: it may yet write there.
        if self._release is not None and self._model.acquire(timeout=CLOSE_S):
            self._release()
            self._release = None
            self._model.release()

    def stats(self) -> EngineStats:
        """Safe from any thread."""
        now, core = self._now, self._now.core
        counted = {name: self._counted[name] + value for name, value in _counters(core).items()}
        device_seconds = self._device_seconds + now.cost.total_s
        running = len(core.scheduler.running)
        return EngineStats(
            running=running,
            waiting=max(0, len(now.streams) - running),
            pages_total=self.config.n_pages,
            pages_free=core.cache.n_free,
            pages_cached=core.cache.tree.n_unused,
            prefix_query_tokens=counted["prompt_tokens"],
            restarts=self._restarts,
            last_step_age_s=self._clock() - now.last_step,
            alive=self._is_alive(now),
            device_seconds=device_seconds,
            kv_store=self._store.stats() if self._store else StoreStats(),
            **counted,
        )

    def check_integrity(self) -> None:
        """Raise AssertionError if a page or a sequence is lost. Only when idle."""
        self._now.core.check_integrity()

    # ------------------------------------------------------------------------------------- the thread

    def _generation(self, *, ready: bool) -> _Generation:
        lease = _Lease(self._runner, self._model, lambda: new.over, self._runner.vocab, self._runner.context_length)
        store = LentStore(self._store, self._model, lambda: new.over) if self._store else None
        new = _Generation(EngineCore(lease, self._tokenizer, self.config, store), ready, self._clock())
        return new

    def _start(self, new: _Generation) -> None:
        new.thread = threading.Thread(target=self._run, args=(new,), name="engine", daemon=True)
        new.thread.start()

    def _run(self, me: _Generation) -> None:
        with self._model:  # an earlier generation's stuck step holds it
            me.ready = True
        try:
            while self._wait(me):
                self._turn(me)
                me.busy_since = None
        except Exception:  # the core promises that this does not happen; what it holds can no longer be trusted
            log.exception("the engine's step failed")
            self._replace(me)

    def _wait(self, me: _Generation) -> bool:
        """Sleep while there is nothing to do. False: this generation is over."""
        with me.wake:
            while not (me.inbox or me.core.is_busy or me.over):
                self._pace(is_busy=False)
                me.wake.wait()
            self._pace(is_busy=True)
            me.busy_since = self._clock()
            return not me.over

    def _pace(self, *, is_busy: bool) -> None:
        if self._store is not None:
            self._store.pace(is_busy=is_busy)

    def _turn(self, me: _Generation) -> None:
        while me.inbox:
            me.inbox.popleft()()
        began = self._clock()
        outputs = me.core.step()
        me.last_step = self._clock()
        me.cost.add(me.core.loads, me.last_step - began)
        self._deliver(me, [(id, _billed(o, me.cost.end(id)) if o.is_last else o) for id, o in outputs])

    def _deliver(self, me: _Generation, outputs: Outputs) -> None:
        """Wake each event loop once, with all that this step brought its streams."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[GenerationStream, TokenOutput]]] = {}
        with me.wake:  # what is declared over now has told its streams already
            for request_id, output in outputs:
                stream = me.streams.pop(request_id, None) if output.is_last else me.streams.get(request_id)
                if stream is not None:
                    by_loop.setdefault(stream.loop, []).append((stream, output))
        for loop, batch in by_loop.items():
            _put(loop, batch)

    def _abort(self, now: _Generation, request_id: str, why: Failure) -> None:
        with now.wake:
            if request_id in now.streams:
                now.inbox.append(lambda: now.core.abort(request_id, why))
                now.wake.notify()

    # ------------------------------------------------------------------------------------- when it goes wrong

    def _is_alive(self, now: _Generation) -> bool:
        return now.ready and not now.over and now.thread is not None and now.thread.is_alive() and not self._is_stuck(now)

    def _is_stuck(self, now: _Generation) -> bool:
        since = now.busy_since
        return since is not None and self._clock() - since > self.config.watchdog_s

    def _watch(self) -> None:
        while not self._stop.wait(min(0.5, self.config.watchdog_s / 4)):
            now = self._now
            if now.ready and not self._is_alive(now):
                log.error("no step for %.1f s; the engine is restarted. Stacks:\n%s", self.config.watchdog_s, _stacks())
                self._replace(now)

    def _replace(self, old: _Generation) -> None:
        """End a generation that is stuck, dead or broken, and start the next."""
        with old.wake:
            if old.over or self._stop.is_set():
                return
            old.over = True
        self._counted.update(_counters(old.core))
        self._device_seconds += old.cost.total_s
        new = self._generation(ready=False)
        self._now, self._restarts = new, self._restarts + 1
        self._tell_all(old, RESTARTED)
        self._start(new)

    def _tell_all(self, generation: _Generation, why: Failure) -> None:
        with generation.wake:
            streams = list(generation.streams.values())
            generation.streams.clear()
        for stream in streams:
            _put(stream.loop, [(stream, TokenOutput(failure=why))])


_COUNTERS = (
    *("prefix_hit_tokens", "prompt_tokens", "generation_tokens", "guessed_tokens", "kept_tokens"),
    *("preemptions", "steps"),
)


def _counters(core: EngineCore) -> dict[str, int]:
    return {name: getattr(core.scheduler if name == "preemptions" else core, name) for name in _COUNTERS}


def _billed(output: TokenOutput, spent: tuple[float, float]) -> TokenOutput:
    return replace(output, device_seconds=spent[0], input_seconds=spent[1])


def _put(loop: asyncio.AbstractEventLoop, batch: list[tuple[GenerationStream, TokenOutput]]) -> None:
    def put() -> None:
        for stream, output in batch:
            stream.put(output)

    with suppress(RuntimeError):  # the loop is closed: nobody listens any more
        loop.call_soon_threadsafe(put)


def _stacks() -> str:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"--- {names.get(ident, ident)}\n{''.join(traceback.format_stack(frame)[-6:])}"
        for ident, frame in sys._current_frames().items()
    )
