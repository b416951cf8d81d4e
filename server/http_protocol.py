"""HTTP/1.1 with limits: what uvicorn leaves open is closed here.

uvicorn with httptools buffers headers without end, waits for ever for the rest of a half-sent request, and answers its own
errors in plain text. The parser itself refuses what smuggling needs: two lengths, a length beside a transfer coding, a bare
line feed, blanks in a header's name.
"""

from __future__ import annotations

import logging
import socket
from asyncio import TimerHandle, Transport
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..wire.errors import BadRequest, BaseloadError, HeadersTooLarge, RequestTimeout, TooLarge, Unavailable
from .replies import retry_header
from .shapes import shape_of

log = logging.getLogger("baseload.http")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes and seconds that one connection may take."""

    header_bytes: int = 65_536
    header_s: float = 10.0  # from a request's first byte to its last header
    body_bytes: int = 32 * 2**20
    body_s: float = 30.0  # between two reads of a body
    stall_s: float = 30.0  # a reader that takes nothing for so long is dropped
    send_buffer: int = 262_144  # asked of the kernel, which takes twice as much
    connections: int = 512
    linger_s: float = 2.0  # reading on after a refusal, or the client's kernel would drop the answer


class BoundedProtocol(HttpToolsProtocol):
    """One connection. `bounded(limits)` makes the class that uvicorn is given."""

    limits = Limits()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._part: Literal["idle", "head", "body"] = "idle"
        self._received = 0  # bytes of the message being read, framing included
        self._body_received = 0
        self._timer: TimerHandle | None = None
        self._refused = False
        self._stall: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        # The kernel's own buffer grows to megabytes, and tells of a reader's progress in steps of a third of it.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.limits.send_buffer)
        if len(self.connections) > self.limits.connections:
            self._refuse(Unavailable("Too many connections are open.", retry_after=2))
            return
        # uvicorn starts this clock after an answer only: a connection that never asks anything would stay for ever.
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        self._set_timer(None)
        self._unset_keepalive_if_required()
        super().connection_lost(exc)  # resumes writing, which ends the stall

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall = self.loop.call_later(self.limits.stall_s, self._stalled, self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def data_received(self, data: bytes) -> None:
        if self._refused or self.parser is None:
            return
        self._unset_keepalive_if_required()
        if self._part == "idle":
            self._enter("head")
        elif self._part == "body":
            self._set_timer(self.limits.body_s)
        self._received += len(data)
        try:
            self.parser.feed_data(data)
            self._check_size()
        except BaseloadError as error:
            self._refuse(error)
        except httptools.HttpParserUpgrade:
            # The request was answered as plain HTTP; the bytes after it are in a protocol that isn't spoken here.
            if self.cycle is not None:
                self.cycle.keep_alive = False
        except httptools.HttpParserError as error:
            # What a callback raises arrives as the parser error's context.
            cause = error.__context__
            self._refuse(cause if isinstance(cause, BaseloadError) else BadRequest("This is not a valid HTTP request."))

    # ------------------------------------------------------------------------------------------- parser callbacks

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._part == "idle":  # the second of two messages in one read; the first's bytes are being counted already
            self._enter("head")

    def on_headers_complete(self) -> None:
        if sum(len(name) + len(value) + 4 for name, value in self.headers) + len(self.url) > self.limits.header_bytes:
            raise HeadersTooLarge(f"Headers are limited to {self.limits.header_bytes} bytes.")
        if not self.url.startswith(b"/") and self.url != b"*":
            raise BadRequest("The request's target must be a path: this is not a proxy.")
        length = next((value for name, value in self.headers if name == b"content-length"), b"0")
        if int(length) > self.limits.body_bytes:
            raise TooLarge(self._body_limit())
        self.headers = list(self.headers)  # what comes after the body (trailers) must not get among the headers
        self._enter("body")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_received += len(body)
        if self._body_received > self.limits.body_bytes:
            raise TooLarge(self._body_limit())
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._enter("idle")
        super().on_message_complete()

    # --------------------------------------------------------------------------------------------------- the limits

    def _enter(self, part: Literal["idle", "head", "body"]) -> None:
        self._part = part
        if part != "body":
            self._received = self._body_received = 0
        self._set_timer({"idle": None, "head": self.limits.header_s, "body": self.limits.body_s}[part])

    def _check_size(self) -> None:
        if self._part == "head" and self._received > self.limits.header_bytes:
            raise HeadersTooLarge(f"Headers are limited to {self.limits.header_bytes} bytes.")
        # Framing counts as well: chunk extensions and trailers are the parser's to hold, and have no limit there.
        if self._part == "body" and self._received - self._body_received > self.limits.body_bytes:
            raise TooLarge(self._body_limit())

    def _body_limit(self) -> str:
        return f"The body is limited to {self.limits.body_bytes // 2**20} MB."

    def _set_timer(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._too_slow)

    def _too_slow(self) -> None:
        if self.flow.read_paused:  # we stopped reading, not the client sending
            self._set_timer(self.limits.body_s)
        else:
            self._refuse(RequestTimeout("The request took too long to arrive."))

    def _stalled(self, held: int) -> None:
        if (now := self.transport.get_write_buffer_size()) < held:  # slow, but reading
            self._stall = self.loop.call_later(self.limits.stall_s, self._stalled, now)
        else:
            self.transport.abort()  # close() would wait for the reader

    def _refuse(self, error: BaseloadError) -> None:
        """Answer `error`, if nothing was answered yet, and end the connection."""
        if self._refused:
            return
        self._refused = True
        self._set_timer(None)
        log.info("refused: %s", error.message, extra={"status": error.status})
        cycle = self.cycle
        answering = cycle is not None and not cycle.response_complete
        if answering:
            # Whoever is making this connection's answer finds its client gone.
            cycle.disconnected = True
            cycle.message_event.set()
        if self.transport.is_closing():
            return
        if answering and cycle.response_started:
            self.transport.close()
            return
        self.transport.write(_answer(error, getattr(self, "url", b"")))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timer = self.loop.call_later(self.limits.linger_s, self.transport.close)


def bounded(limits: Limits) -> type[BoundedProtocol]:
    """The protocol class with these limits, for `uvicorn.Config(http=...)`."""
    return type("BoundedProtocol", (BoundedProtocol,), {"limits": limits})


def _answer(error: BaseloadError, url: bytes) -> bytes:
    body = orjson.dumps(shape_of(url.decode("latin-1")).error(error))
    retry = "".join(f"{name}: {value}\r\n" for name, value in retry_header(error.retry_after).items())
    head = (
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n{retry}connection: close\r\n\r\n"
    )
    return head.encode() + body
