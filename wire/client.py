"""HttpBackend: any server that speaks one of protocols.py is a Backend (a supplier, vLLM, Ollama, another Baseload).

One call, one try: retries, breakers and fallbacks are the router's. Every stream ends with its finishes or one Failure.
"""

import asyncio
import logging
import math
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from .backend import ModelInfo
from .chat import EFFORTS, ChatRequest, Effort, Event, Failure, Finish
from .egress import NETWORK_ERRORS, Egress, Response, Session, was_sent, what_broke
from .errors import BaseloadError
from .protocols import PROTOCOLS, WireProtocol
from .sse import SseParser, TooLong
from .upstream import run_together

log = logging.getLogger("baseload.wire")

MAX_EVENT, MAX_BODY, MAX_ERROR = 1 << 20, 64 << 20, 64 << 10  # bytes of an upstream's event, answer and error
REST_S = 1.0  # for what a transfer sends after its last word: its own end
RETRYABLE = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


@dataclass(frozen=True, slots=True)
class Connection:
    """Where a server is and how long it may take. Seconds."""

    name: str
    base_url: str  # up to and without the protocol's own path
    protocol: str = "openai_chat"  # a key of PROTOCOLS
    api_key: str | None = None
    headers: Mapping[str, str] | None = None
    drop_fields: tuple[str, ...] = ()
    rename_fields: Mapping[str, str] = field(default_factory=dict)  # what the protocol calls a field -> what this server does
    connect_s: float = 10.0
    first_byte_s: float = 60.0
    between_bytes_s: float = 60.0  # between whole lines: a line that drips in is silence
    purpose: str = ""  # in the egress log; empty: a supplier's


class HttpBackend:
    """A server behind the door. `close` it to let its connections go."""

    def __init__(
        self, connection: Connection, models: Sequence[ModelInfo], egress: Egress, protocol: WireProtocol | None = None
    ) -> None:
        """`protocol`: one that is not among PROTOCOLS."""
        self.connection, self._protocol = connection, protocol or PROTOCOLS[connection.protocol]
        self._models = tuple(models)
        self._egress = egress
        self._session: Session | None = None
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """The models of the configuration."""
        return self._models

    def count_tokens(self, request: ChatRequest) -> None:
        """Only the server could tell."""
        return None

    async def close(self) -> None:
        """Close the connections."""
        for task in self._ending:
            task.cancel()
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        """See Backend.generate."""
        try:
            async for event in self._call(request):
                yield event
        except BaseloadError as error:
            yield Failure(error.message, error.status, error.kind, error.code, error.retryable, error.retry_after)
        except TooLong:
            yield _broken(f"The supplier {self.connection.name} sent more than is taken.")
        except NETWORK_ERRORS as error:
            yield _broken(f"The supplier {self.connection.name} {what_broke(error)}.", unanswered=was_sent(error))
        except Exception:
            log.exception("a call to the supplier %s went wrong", self.connection.name)
            yield Failure(f"The call to the supplier {self.connection.name} went wrong.")

    async def _call(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        of = self.connection
        known = next((info.efforts for info in self._models if info.id in (request.model, f"{of.name}/{request.model}")), ())
        asked = replace(request, effort=nearest(request.effort, known))
        body = renamed(self._protocol.request(asked, request.model, of.drop_fields), of.rename_fields)
        headers = {**self._protocol.headers(of.api_key), **(of.headers or {}), "idempotency-key": uuid.uuid4().hex}
        headers["content-type"] = "application/json"
        url = of.base_url.rstrip("/") + self._protocol.path(request.model)
        post = self._opened().post(url, data=orjson.dumps(body), headers=headers, allow_redirects=False)
        async with asyncio.timeout(of.connect_s + of.first_byte_s):
            response = await post
        last, whole = None, False
        try:
            async for last in self._read(request, response):
                yield last
            whole = isinstance(last, Finish)
        finally:
            if whole:
                self._keep(response)
            else:
                # The rest of an answer that nobody wants is not read: the connection goes, and with it the supplier's work.
                response.close()

    def _keep(self, response: Response) -> None:
        """Keep the connection for another call. Many servers send the end of a transfer after its last word, by
        itself: it is waited for, but not by the client."""
        if not response.content.at_eof():
            task = asyncio.create_task(_rest(response))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _read(self, request: ChatRequest, response: Response) -> AsyncGenerator[Event, None]:
        if response.status != 200:
            yield await self._refused(response)
            return
        if response.headers.get("content-encoding", "identity") != "identity":
            yield _broken(f"The supplier {self.connection.name} compressed its answer, which was not asked for.")
            return
        if response.content_type != "text/event-stream":
            for event in await self._whole(request, response):
                yield event
            return
        parser = self._protocol.stream(request.sampling.n)
        async for came in self._data(response):
            for event in run_together([event for data in came for event in parser.feed(data)]):
                yield event
            if parser.ended:
                return
        for event in parser.close():
            yield event

    async def _data(self, response: Response) -> AsyncGenerator[list[str], None]:
        """The data of events, those together that come together. Bounded in length and in the time between whole lines."""
        parser, total, lines, wait = SseParser(MAX_EVENT), 0, 0, self.connection.between_bytes_s
        until = time.monotonic() + wait
        while True:
            async with asyncio.timeout(until - time.monotonic()):  # wait_for may swallow a cancellation (before Python 3.12)
                chunk = await response.content.readany()
            if not chunk:
                break
            total += len(chunk)
            if total > MAX_BODY:
                raise TooLong
            if came := parser.feed(chunk):
                yield came
            if parser.lines > lines:
                # Counted from here, not from the line's coming: what a slow client takes is not the supplier's silence.
                lines, until = parser.lines, time.monotonic() + wait
        yield parser.close()

    async def _whole(self, request: ChatRequest, response: Response) -> list[Event]:
        try:
            body = await self._json(response, MAX_BODY)
            return self._protocol.whole(body, request.sampling.n)
        except TooLong:
            raise
        except (ValueError, TypeError, AttributeError, KeyError):
            return [_broken(f"The supplier {self.connection.name} sent an answer that cannot be read.")]

    async def _json(self, response: Response, limit: int) -> Any:
        async with asyncio.timeout(self.connection.between_bytes_s):
            raw = bytearray()
            while chunk := await response.content.readany():
                raw += chunk
                if len(raw) > limit:
                    raise TooLong
        return orjson.loads(bytes(raw))

    async def _refused(self, response: Response) -> Failure:
        """A status other than 200. Our client learns the status, the log the error's code too; its text may hold the prompt."""
        try:
            said = await self._json(response, MAX_ERROR)
        except (ValueError, *NETWORK_ERRORS):
            said = None
        status = response.status
        log.warning("supplier %s answered %d (%s)", self.connection.name, status, _code(said))
        log.debug("supplier %s said: %.500s", self.connection.name, ascii(said))
        ours = 429 if status == 429 else 400 if status in (400, 413, 422) else 502
        kind = {429: "rate_limit_error", 400: "invalid_request_error"}.get(ours, "server_error")
        code = {429: "rate_limit_exceeded", 400: "upstream_refused"}.get(ours, "upstream_error")
        retry_after = _seconds(response.headers.get("retry-after"))
        message = f"The supplier {self.connection.name} answered with status {status}."
        return Failure(message, ours, kind, code, status in RETRYABLE, retry_after)

    def _opened(self) -> Session:
        if self._session is None:
            self._session = self._egress.session(connect_s=self.connection.connect_s, purpose=self.connection.purpose)
        return self._session


async def _rest(response: Response) -> None:
    """Read the end of a transfer, which gives its connection back. Anything else than the end costs it the connection."""
    try:
        async with asyncio.timeout(REST_S):
            await response.content.readany()
    except NETWORK_ERRORS:
        pass
    finally:
        response.close()  # which leaves one alone that was given back


def renamed(body: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """`body` with its fields as a server calls them. Of two limits that come to be one, the smaller holds."""
    out = dict(body)
    for name, theirs in names.items():
        if name not in out:
            continue
        value, other = out.pop(name), out.get(theirs)
        both = isinstance(value, int) and isinstance(other, int)
        out[theirs] = min(value, other) if both else value if value is not None else other
    return out


def _code(body: Any) -> str:
    """The code or type of an error object, fit for a log."""
    error = body.get("error") if isinstance(body, dict) else None
    error = error if isinstance(error, dict) else {}
    return ascii(error.get("code") or error.get("type"))[:80]


def _seconds(text: str | None) -> float | None:
    """Retry-After in seconds, bounded; None for a date or nonsense."""
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return min(max(seconds, 0.0), 300.0) if math.isfinite(seconds) else None


def _broken(message: str, *, unanswered: bool = True) -> Failure:
    return Failure(message, 502, "server_error", "upstream_error", retryable=True, unanswered=unanswered)


def nearest(effort: Effort | None, known: Sequence[Effort]) -> Effort | None:
    """Of the efforts that a model knows, the one asked for or the next below; the least where all are above."""
    if effort is None or not known:
        return None
    ranked: list[Effort] = [e for e in EFFORTS if e in known]
    below: list[Effort] = [e for e in ranked if EFFORTS.index(e) <= EFFORTS.index(effort)]
    return below[-1] if below else ranked[0]
