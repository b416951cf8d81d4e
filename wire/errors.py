"""One tree of errors for the whole house.

Each error knows its HTTP status and OpenAI's `type` and `code`; each protocol renders it in its own shape. The message is
written for the client: it never holds a path, a stack trace or the client's own input at length. What only the log may
see goes into `__cause__`.
"""

import re
from typing import ClassVar


class BaseloadError(Exception):
    """The root: `status` (HTTP), `kind` (OpenAI's error type), `code` (machine-readable, may be None), `param` (the field)."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code
        self.retry_after = retry_after  # seconds


class BadRequest(BaseloadError):
    """400: the request cannot be right, whoever sends it."""

    status = 400
    kind = "invalid_request_error"
    default_code = "invalid_request"


class ContextLengthExceeded(BadRequest):
    """400 `context_length_exceeded`: clients compact their conversation on this code."""

    default_code = "context_length_exceeded"


_OVERFLOW = re.compile(r"maximum context length is (\d+) tokens.*?(\d+) tokens")


def overflow(message: str, code: str | None) -> tuple[str, str] | None:
    """The tokens of a prompt that was too long and the most that fit, for protocols that tell them in words of their own.

    Read from the message, since that alone is left of an error that came as the end of a stream.
    """
    found = _OVERFLOW.search(message) if code == ContextLengthExceeded.default_code else None
    return (found[2], found[1]) if found else None


class Unauthorized(BaseloadError):
    """401: no key, or an unknown one."""

    status = 401
    kind = "authentication_error"
    default_code = "invalid_api_key"


class Forbidden(BaseloadError):
    """403: known, but not allowed; also a gate of the policy (air gap, supplier not allowed) and a foreign Host or Origin."""

    status = 403
    kind = "permission_error"
    default_code = "forbidden"


class NotFound(BaseloadError):
    """404: no such path or object."""

    status = 404
    kind = "invalid_request_error"
    default_code = "not_found"


class ModelNotFound(NotFound):
    """404 `model_not_found`."""

    default_code = "model_not_found"


class MethodNotAllowed(BaseloadError):
    """405."""

    status = 405
    kind = "invalid_request_error"
    default_code = "method_not_allowed"


class RequestTimeout(BaseloadError):
    """408: the client was too slow to send its request."""

    status = 408
    kind = "invalid_request_error"
    default_code = "request_timeout"


class TooLarge(BaseloadError):
    """413: the body exceeds the limit."""

    status = 413
    kind = "invalid_request_error"
    default_code = "request_too_large"


class UnsupportedMedia(BaseloadError):
    """415: not JSON, or compressed."""

    status = 415
    kind = "invalid_request_error"
    default_code = "unsupported_media_type"


class HeadersTooLarge(BaseloadError):
    """431."""

    status = 431
    kind = "invalid_request_error"
    default_code = "headers_too_large"


class RateLimited(BaseloadError):
    """429 with `Retry-After`: a queue is full or a rate is exceeded; trying again later is right."""

    status = 429
    kind = "rate_limit_error"
    default_code = "rate_limit_exceeded"
    retryable = True

    def __init__(self, message: str, *, code: str | None = None, retry_after: float = 1.0) -> None:
        super().__init__(message, code=code, retry_after=retry_after)


class BudgetExhausted(BaseloadError):
    """429 `insufficient_quota` (402 in Anthropic's shape), without `Retry-After`: clients would sleep until the reset."""

    status = 429
    kind = "insufficient_quota"
    default_code = "insufficient_quota"


class InternalError(BaseloadError):
    """500: ours; details are in the log under the request id."""


class UpstreamError(BaseloadError):
    """502: a supplier failed or answered nonsense."""

    status = 502
    default_code = "upstream_error"
    retryable = True


class Unavailable(BaseloadError):
    """503 with `Retry-After`: starting, draining, or the engine is being restarted."""

    status = 503
    default_code = "service_unavailable"
    retryable = True

    def __init__(self, message: str, *, code: str | None = None, retry_after: float = 1.0) -> None:
        super().__init__(message, code=code, retry_after=retry_after)


class EgressDenied(Forbidden):
    """403: wire/egress.py refused to open a connection (air gap, or not on the list)."""

    default_code = "egress_denied"


class ModelFileError(BaseloadError):
    """A model file is broken, hostile, or of a kind we do not read. One line, shown by the CLI; never reaches HTTP clients."""

    default_code = "model_file_error"
