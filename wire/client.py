"""HttpBackend: any server that speaks OpenAI's chat completions is a Backend (a supplier, vLLM, Ollama, another Baseload).

One call, one try: retries, breakers and fallbacks are the router's. Every stream ends with its finishes or one Failure.
"""

import asyncio
import logging
import ssl
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from .backend import ModelInfo
from .chat import ChatRequest, Event, Failure
from .egress import Egress
from .errors import BaseloadError, EgressDenied
from .openai_chat import StreamParser, parse_response, render_request

log = logging.getLogger("baseload.wire")

MAX_LINE, MAX_BODY, MAX_ERROR = 1 << 20, 64 << 20, 64 << 10  # bytes of an upstream's line, answer and error
RETRYABLE = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


@dataclass(frozen=True, slots=True)
class Connection:
    """Where a server is and how long it may take. Seconds."""

    name: str
    base_url: str  # up to and without /chat/completions
    api_key: str | None = None
    headers: Mapping[str, str] | None = None
    drop_fields: tuple[str, ...] = ()
    connect_s: float = 10.0
    first_byte_s: float = 60.0
    between_bytes_s: float = 60.0


class HttpBackend:
    """A server behind the door. `close` it to let its connections go."""

    def __init__(self, connection: Connection, models: Sequence[ModelInfo], egress: Egress) -> None:
        self.connection = connection
        self._models = tuple(models)
        self._egress = egress
        self._session: aiohttp.ClientSession | None = None

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """The models of the configuration."""
        return self._models

    def count_tokens(self, request: ChatRequest) -> None:
        """Only the server could tell."""
        return None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        """See Backend.generate."""
        try:
            async for event in self._call(request):
                yield event
        except EgressDenied as error:
            yield _denied(error)
        except BaseloadError as error:
            yield Failure(error.message, error.status, error.kind, error.code, error.retryable, error.retry_after)
        except (TimeoutError, aiohttp.ClientError, OSError, ssl.SSLError) as error:
            yield _broken(f"The supplier {self.connection.name} {_what(error)}.")

    async def _call(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        of = self.connection
        body = render_request(request, request.model, of.drop_fields)
        headers = {**(of.headers or {}), "idempotency-key": uuid.uuid4().hex}
        if of.api_key:
            headers["authorization"] = f"Bearer {of.api_key}"
        timeout = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=of.connect_s, sock_read=None)
        post = self._opened().post(
            f"{of.base_url.rstrip('/')}/chat/completions", json=body, headers=headers, timeout=timeout, allow_redirects=False
        )
        async with asyncio.timeout(of.connect_s + of.first_byte_s):
            response = await post
        try:
            async for event in self._read(request, response):
                yield event
        finally:
            # The rest of an answer that nobody wants is not read: the connection goes, and with it the supplier's work.
            response.close()

    async def _read(self, request: ChatRequest, response: aiohttp.ClientResponse) -> AsyncGenerator[Event, None]:
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
        parser = StreamParser(request.sampling.n)
        async for data in self._data_lines(response):
            for event in parser.feed(data):
                yield event
            if parser.ended:
                return
        for event in parser.close():
            yield event

    async def _data_lines(self, response: aiohttp.ClientResponse) -> AsyncGenerator[str, None]:
        """The payloads of `data:` lines. Bounded in length and in the time between bytes."""
        buffer, total = b"", 0
        while chunk := await asyncio.wait_for(response.content.readany(), self.connection.between_bytes_s):
            total += len(chunk)
            *lines, buffer = (buffer + chunk).split(b"\n")
            if len(buffer) > MAX_LINE or total > MAX_BODY:
                raise aiohttp.ClientPayloadError("too long")
            for line in lines:
                if line.startswith(b"data:"):
                    yield line[5:].strip().decode("utf-8", "replace")

    async def _whole(self, request: ChatRequest, response: aiohttp.ClientResponse) -> list[Event]:
        try:
            body = await self._json(response, MAX_BODY)
            return parse_response(body, request.sampling.n)
        except (ValueError, TypeError, AttributeError):
            return [_broken(f"The supplier {self.connection.name} sent an answer that cannot be read.")]

    async def _json(self, response: aiohttp.ClientResponse, limit: int) -> Any:
        async with asyncio.timeout(self.connection.between_bytes_s):
            raw = bytearray()
            while chunk := await response.content.readany():
                raw += chunk
                if len(raw) > limit:
                    raise aiohttp.ClientPayloadError("too long")
        return orjson.loads(bytes(raw))

    async def _refused(self, response: aiohttp.ClientResponse) -> Failure:
        """A status other than 200. What the supplier says is for the log; our client learns the status."""
        try:
            said = str(await self._json(response, MAX_ERROR))[:500]
        except (ValueError, TimeoutError, aiohttp.ClientError):
            said = ""
        said = said.encode("unicode_escape").decode()
        log.warning("supplier %s answered %d: %s", self.connection.name, response.status, said)
        status = response.status
        ours = 429 if status == 429 else 400 if status in (400, 413, 422) else 502
        kind = {429: "rate_limit_error", 400: "invalid_request_error"}.get(ours, "server_error")
        code = {429: "rate_limit_exceeded", 400: "upstream_refused"}.get(ours, "upstream_error")
        retry_after = _seconds(response.headers.get("retry-after"))
        message = f"The supplier {self.connection.name} answered with status {status}."
        return Failure(message, ours, kind, code, status in RETRYABLE, retry_after)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = self._egress.session()
        return self._session


def _seconds(text: str | None) -> float | None:
    """Retry-After in seconds, bounded; None for a date or nonsense."""
    try:
        return min(max(float(text or ""), 0.0), 300.0)
    except ValueError:
        return None


def _what(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "took too long"
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError | ssl.SSLError):
        return "has no valid certificate"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "has a name that does not resolve"
    if isinstance(error, aiohttp.ClientConnectorError | ConnectionRefusedError):
        return "cannot be reached"
    return "broke off its answer"


def _broken(message: str) -> Failure:
    return Failure(message, 502, "server_error", "upstream_error", retryable=True)


def _denied(error: EgressDenied) -> Failure:
    return Failure(error.message, error.status, error.kind, error.code)
