"""Answers that are not a stream: JSON, and every error in its protocol's shape. A stack trace or a path never gets into one."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response

from ..wire.chat import Failure
from ..wire.errors import BaseloadError, BudgetExhausted, InternalError
from .shapes import OPENAI, Shape

log = logging.getLogger("baseload.server")


def json_reply(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`body` as JSON."""
    return Response(orjson.dumps(body), status, dict(headers or {}), media_type="application/json")


def error_reply(error: BaseloadError, headers: Mapping[str, str] | None = None, shape: Shape = OPENAI) -> Response:
    """An error, with the headers its status asks for."""
    extra = retry_header(error.retry_after)
    if error.status == 401:
        extra["www-authenticate"] = "Bearer"
    return json_reply(shape.error(error), shape.status(error), {**(headers or {}), **extra, **_no_retry(error)})


def failure_reply(failure: Failure, headers: Mapping[str, str] | None = None, shape: Shape = OPENAI) -> Response:
    """A Failure that came before anything was sent."""
    more = {**retry_header(failure.retry_after), **_no_retry(failure)}
    return json_reply(shape.failure(failure), shape.status(failure), {**(headers or {}), **more})


def _no_retry(error: BaseloadError | Failure) -> dict[str, str]:
    """The vendors' own clients try a 429 again, twice, unless they are told not to."""
    return {"x-should-retry": "false"} if error.kind == BudgetExhausted.kind else {}


def retry_header(seconds: float | None) -> dict[str, str]:
    """`Retry-After` in whole seconds, rounded up; nothing for None."""
    return {} if seconds is None else {"retry-after": str(max(1, math.ceil(seconds)))}


def known(error: Exception, request_id: str) -> BaseloadError:
    """`error` as one that a client may see. What is not ours goes to the log, under the request's id."""
    if isinstance(error, BaseloadError):
        return error
    log.error("unexpected %s", type(error).__name__, exc_info=error, extra={"request_id": request_id})
    return InternalError(f"Internal error. The server's log has the details under {request_id}.")


def as_failure(error: BaseloadError) -> Failure:
    """The event that ends a stream with `error`."""
    return Failure(error.message, error.status, error.kind, error.code, error.retryable, error.retry_after)
