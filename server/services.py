"""What the routes stand on: the rooms below, handed in at start-up, and where the server is in its life."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from starlette.requests import Request

from ..harness.job import Job
from ..wire.backend import ModelInfo, Tokenizing
from ..wire.chat import ChatRequest, Event, Failure
from ..wire.errors import RateLimited, Unavailable
from .callers import Caller, caller

log = logging.getLogger("baseload.server")
CUT_GRACE_S = 5.0  # how long answers that were told to end may take to write their last words


class Handling(Protocol):
    """One request on its way: `events` ends in a Finish per choice or one Failure; the rest grows with it."""

    @property
    def events(self) -> AsyncGenerator[Event, None]: ...
    @property
    def attempts(self) -> Sequence[Any]: ...
    @property
    def cost_usd(self) -> float | None: ...
    @property
    def route(self) -> str: ...


class Router(Protocol):
    """router.Router, as far as the server knows it."""

    def resolve(self, name: str, /) -> Any: ...
    def models(self) -> Iterable[ModelInfo]: ...
    async def handle(self, request: ChatRequest, context: Any, /) -> Handling: ...
    async def count_tokens(self, request: ChatRequest, /) -> int | None: ...
    def tokenizing(self, name: str, /) -> Tokenizing: ...


class Engine(Protocol):
    """runtime.engine.Engine, as far as the server knows it; `stats()` is cheap and may be called from any thread."""

    def stats(self) -> Any: ...


class Pool(Protocol):
    """runtime.pool.Pool, as far as the server knows it."""

    @property
    def models(self) -> tuple[ModelInfo, ...]: ...
    @property
    def is_up(self) -> bool: ...
    @property
    def replicas(self) -> Mapping[str, Any]: ...
    @property
    def retries(self) -> int: ...
    def drain(self, name: str, *, closed: bool) -> None: ...


class Embedder(Protocol):
    """runtime.embedder.Embedder, as far as the server knows it."""

    @property
    def longest(self) -> int: ...
    def of(self, tenant: str, /) -> Embedder: ...
    async def embed(self, inputs: Sequence[Any], /) -> tuple[Any, int]: ...
    async def rank(self, query: str, documents: Sequence[str], /) -> tuple[list[float], str, int]: ...


class Ledger(Protocol):
    """ledger.Ledger, as far as the server knows it."""

    def flush(self) -> None: ...
    def request(self, request_id: str, /) -> dict[str, Any] | None: ...
    def add(self, row: Any, /) -> None: ...
    @property
    def feedback(self) -> Callable[..., bool]: ...
    @property
    def engine(self) -> Any: ...


class Keyring(Protocol):
    """server.keyring.Keyring."""

    async def find(self, secret: str, /) -> Caller | None: ...
    async def any(self) -> bool: ...


def nobody_learns() -> None:
    """The default of `Services.audited`."""


async def nothing_to_close() -> None:
    """The default of `Services.close`."""


@dataclass(frozen=True, slots=True)
class Services:
    """The rooms below. `close` ends them in their order: the engine first, the ledger last."""

    router: Router
    ledger: Ledger | None = None
    engines: Callable[[], Mapping[str, Engine]] = dict  # of the models that are loaded now, by name
    embedders: Mapping[str, Embedder] = field(default_factory=dict)  # by name
    jobs: Mapping[str, Job] = field(default_factory=dict)
    close: Callable[[], Awaitable[None]] = nothing_to_close
    keyring: Keyring | None = None  # None: there are no virtual keys
    audited: Callable[[], None] = nobody_learns  # an audit has been written down; blocks
    drifts: Callable[[], Mapping[str, Any]] = dict  # of the predictors, by name: calibrate.Drift
    accounts: Callable[[], Any] | None = None  # ledger.accounts.Accounts; may block on the disk
    breakers: Callable[[], Mapping[tuple[str, str], bool]] = dict  # (supplier, model) -> open
    pools: Sequence[Pool] = ()
    more_metrics: Sequence[Callable[[], Awaitable[bytes | None]]] = ()  # pages of engines that count for themselves


class Life:
    """Where the server is: starting, ready, draining. It also counts the answers being made.

    An answer that must end early is told so through the function it gave to `enter`.
    """

    def __init__(self, services: Services | None, max_in_flight: int) -> None:
        self.services = services
        self.phase: Literal["starting", "ready", "draining"] = "ready" if services else "starting"
        self.max_in_flight = max_in_flight
        self.hurry = asyncio.Event()  # set: a drain waits no longer
        self._enders: dict[object, Callable[[Failure], None]] = {}

    @property
    def in_flight(self) -> int:
        """Answers being made now."""
        return len(self._enders)

    def start(self, services: Services) -> None:
        """The rooms below are up."""
        self.services = services
        if self.phase == "starting":
            self.phase = "ready"

    def require(self) -> Services:
        """The services. Raises Unavailable while starting and while draining."""
        if self.phase == "draining":
            raise Unavailable("The server is shutting down.", code="shutting_down", retry_after=5)
        if self.services is None:
            raise Unavailable("The server is starting: its model is being loaded.", code="starting", retry_after=2)
        return self.services

    def admit(self) -> None:
        """Raises RateLimited where one more answer would be too many at once, and what `require` raises."""
        self.require()  # a drain may have begun while the body was coming in
        if self.in_flight >= self.max_in_flight:
            raise RateLimited("Too many requests are being answered. Try again shortly.", retry_after=1)

    def enter(self, token: object, end: Callable[[Failure], None]) -> None:
        """An answer begins; `end` must stop it with that failure. Pair it with `leave`."""
        self._enders[token] = end

    def leave(self, token: object) -> None:
        """An answer is over."""
        self._enders.pop(token, None)

    async def drain(self, timeout_s: float) -> None:
        """Refuse what is new, let what runs go on for `timeout_s` seconds, then end it with a Failure."""
        self.phase = "draining"
        await self._settle(timeout_s, self.hurry)
        if self.in_flight:
            log.warning("%d answers were still running and are ended", self.in_flight)
        failure = Failure("The server is shutting down.", 503, "server_error", "shutting_down", retryable=True, retry_after=5)
        for end in list(self._enders.values()):
            end(failure)
        await self._settle(CUT_GRACE_S, None)

    async def _settle(self, timeout_s: float, hurry: asyncio.Event | None) -> None:
        deadline = time.monotonic() + timeout_s
        while self.in_flight and time.monotonic() < deadline and not (hurry and hurry.is_set()):
            await asyncio.sleep(0.02)


def models_of(request: Request) -> list[ModelInfo]:
    """All models that this caller may ask for, encoders too. Raises Unavailable."""
    services, may = request.app.state.life.require(), caller(request).scopes
    chat = services.router.models()
    known = {info.id for info in chat}
    encoders = (ModelInfo(name, one.longest) for name, one in services.embedders.items() if name not in known)
    return [info for info in (*chat, *encoders) if may.may_ask(info.id) and (info.local or may.may_call(info.owned_by))]
