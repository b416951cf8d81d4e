"""The log on stderr: text on a terminal, JSON lines elsewhere, one line for each request.

No prompt, answer or key gets here: what a request line holds is listed in `Notes`. Control characters are escaped, so that
nobody's input can forge a line or drive a terminal.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from dataclasses import dataclass, field
from typing import Any, TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .metrics import Metrics
from .replies import error_reply, known
from .settings import LogSettings
from .shapes import shape_of
from .streaming import REQUEST_ID, ClientGone

log = logging.getLogger("baseload.request")
NO_ANSWER = 499  # the client left; nginx's number for it
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code != 0x0A} | {
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}
_BUILT_IN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "color_message", "taskName"}


@dataclass(slots=True)
class Notes:
    """What one request's line tells; the routes fill it in."""

    request_id: str
    started: float = field(default_factory=time.monotonic)
    model: str = ""
    route: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    gone: bool = False


def setup(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Send all logs to `stream` (stderr) in the format that the settings and the terminal ask for."""
    handler = logging.StreamHandler(stream)
    as_json = settings.format == "json" or (settings.format == "auto" and not handler.stream.isatty())
    handler.setFormatter(JsonLines() if as_json else PlainLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    level = settings.level.upper()
    root.setLevel(level if level == "ERROR" else "WARNING")  # the libraries' own chatter stays out
    logging.getLogger("baseload").setLevel(level)


def escaped(text: str) -> str:
    """`text` without control characters, line feeds included."""
    return text.translate(_ESCAPES).replace("\n", "\\n")


class JsonLines(logging.Formatter):
    """One JSON object a line: ts (seconds since the epoch), level, logger, message, and the record's own extras."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"ts": record.created, "level": record.levelname.lower(), "logger": record.name}
        line |= {"message": record.getMessage(), **_extras(record)}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        # ASCII throughout: other control characters, line separators and halves of surrogates are escapes then, too.
        return json.dumps(line, default=str).replace("\x7f", "\\u007f")


class PlainLines(logging.Formatter):
    """A line for people. A trace keeps its lines."""

    def format(self, record: logging.LogRecord) -> str:
        extras = " ".join(f"{key}={value}" for key, value in _extras(record).items())
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = escaped(f"{clock} {record.levelname.lower():7} {record.getMessage()} {extras}".rstrip())
        trace = self.formatException(record.exc_info).translate(_ESCAPES) if record.exc_info else ""
        return f"{line}\n{trace}" if trace else line


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in record.__dict__.items() if key not in _BUILT_IN and value not in (None, "")}


class RequestLog:
    """The outermost ASGI middleware: gives each request its id, catches what nobody caught, writes its line."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        notes = scope.setdefault("state", {})["notes"] = Notes(new_id())
        status = 0

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (REQUEST_ID.encode(), notes.request_id.encode())]}
            await send(message)

        try:
            await self.app(scope, receive, tagged)
        except ClientGone:
            notes.gone = True
        except Exception as error:
            answer = known(error, notes.request_id)
            if status:  # too late to say anything but that it broke off
                raise
            await error_reply(answer, shape=shape_of(scope["path"], scope["headers"]))(scope, receive, tagged)
        finally:
            self._tell(scope, notes, NO_ANSWER if notes.gone else status)

    def _tell(self, scope: Scope, notes: Notes, status: int) -> None:
        # A path that is no route's is the client's invention: as a label it would grow without end.
        path = getattr(scope.get("route"), "path", None) or "other"
        self.metrics.http.labels(path, str(status)).inc()
        milliseconds = round((time.monotonic() - notes.started) * 1000, 1)
        log.log(
            logging.DEBUG if path in ("/health", "/ready", "/metrics") or path.startswith("/console") else logging.INFO,
            "%s %s",
            scope["method"],
            path if path != "other" else scope["path"][:200],
            extra={
                "request_id": notes.request_id,
                "status": status,
                "model": notes.model,
                "route": notes.route,
                "ms": milliseconds,
                "prompt_tokens": notes.prompt_tokens or None,
                "completion_tokens": notes.completion_tokens or None,
            },
        )


def new_id() -> str:
    """A request's id, unguessable: it opens the request's page in the ledger."""
    return f"req_{secrets.token_hex(12)}"
