"""OpenTelemetry spans of requests and their calls, by the GenAI conventions; made of the ledger's rows, so without any text.

A request is a span, and each call of a model in it a child, `chat MODEL`, with `gen_ai.*` attributes and what the books know of
it under `baseload.*`. Off unless an endpoint is set. Spans leave through the egress door like all else, over HTTP (OTLP in
protobuf); in an air gap only a collector on this machine gets any.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from ..ledger.rows import AttemptRow, RequestRow, Row
from ..wire.egress import NETWORK_ERRORS, Egress, Session, attempt_purpose, is_loopback
from ..wire.errors import BaseloadError
from .settings import TelemetrySettings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

log = logging.getLogger("baseload.server")

EXPORT_S = 10.0
LIVE = 10_000  # requests under way whose span is remembered


def endpoint(settings: TelemetrySettings, env: Mapping[str, str] = os.environ) -> str:
    """Where spans go, as a base URL; empty: nowhere."""
    return settings.otlp_endpoint or env.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")


def host(settings: TelemetrySettings, env: Mapping[str, str] = os.environ) -> list[str]:
    """The host that the door must let spans to, if any."""
    name = urlsplit(endpoint(settings, env)).hostname
    return [name] if name else []


def begin(settings: TelemetrySettings, egress: Egress, env: Mapping[str, str] = os.environ) -> Tracing | None:
    """Tracing to the endpoint, or None where there is none or it may not be. In the event loop that will send."""
    url = endpoint(settings, env).rstrip("/")
    if not url:
        return None
    name = urlsplit(url).hostname or ""
    if urlsplit(url).scheme not in ("http", "https") or not name:
        log.error("no spans are sent: %r is no http address", url)
        return None
    if not is_loopback(name) and (reason := egress.verdict(name)):
        log.error("no spans are sent to %s: %s", name, reason)
        return None
    try:
        exporter = _exporter(f"{url}/v1/traces", _headers(env.get("OTEL_EXPORTER_OTLP_HEADERS", "")), egress)
        return Tracing(_batches(exporter), env.get("OTEL_SERVICE_NAME", "baseload"))
    except ImportError:
        log.error("no spans are sent: OpenTelemetry is not installed; pip install 'baseload[otel]'")
        return None


class Tracing:
    """Makes spans of rows as the ledger gets them. `saw` is called in one thread."""

    def __init__(self, processor: SpanProcessor, service: str = "baseload") -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        self._provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("baseload")
        self._live: dict[str, tuple[Span, RequestRow]] = {}

    def saw(self, row: Row) -> None:
        """A request begins or ends, or a call has ended. Never raises: a span is not worth an answer."""
        try:
            if isinstance(row, RequestRow):
                self._request(row)
            elif isinstance(row, AttemptRow):
                self._call(row)
        except Exception:
            log.exception("a span could not be made")

    async def close(self) -> None:
        """Send what is left."""
        await asyncio.to_thread(self._provider.shutdown)

    def _request(self, row: RequestRow) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode

        if row.finished_ts is None:
            if len(self._live) >= LIVE:
                self._live.pop(next(iter(self._live)))
            name = f"baseload {row.model_asked}"
            span = self._tracer.start_span(name, kind=SpanKind.SERVER, start_time=_ns(row.ts), attributes=_asked(row))
            self._live[row.id] = span, row
            return
        span, _ = self._live.pop(row.id, (None, None))
        if span is None:
            return
        span.set_attributes({"baseload.route": row.route, "baseload.status": row.status})
        if row.status == "failed":
            span.set_attribute("error.type", row.error_code or "_OTHER")
            span.set_status(Status(StatusCode.ERROR))
        span.end(_ns(row.finished_ts))

    def _call(self, row: AttemptRow) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        span, request = self._live.get(row.request_id, (None, None))
        within = set_span_in_context(span) if span is not None else None
        kind = SpanKind.INTERNAL if row.backend == "local" else SpanKind.CLIENT
        operation = "text_completion" if request is not None and request.protocol == "openai_completions" else "chat"
        attributes = {"gen_ai.operation.name": operation, **_called(row)}
        if request is not None:
            attributes |= {"gen_ai.request.stream": request.stream, **_conversation(request)}
        name = f"{operation} {row.model}"
        made = self._tracer.start_span(name, within, kind, attributes, start_time=_ns(row.started_ts))
        if row.error:
            made.set_attribute("error.type", row.error)
            made.set_status(Status(StatusCode.ERROR))
        made.end(_ns(row.started_ts + (row.duration_s or 0.0)))


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


def _asked(row: RequestRow) -> dict[str, Any]:
    named = {"key_id": row.key_id, "job": row.job, "task_class": row.task_class, "data_class": row.data_class}
    said = {f"baseload.{name}": value for name, value in named.items() if value is not None}
    return {"baseload.request_id": row.id, "baseload.protocol": row.protocol, **said, **_conversation(row)}


def _conversation(row: RequestRow) -> dict[str, Any]:
    return {"gen_ai.conversation.id": row.session} if row.session else {}


def _called(row: AttemptRow) -> dict[str, Any]:
    """What is not known is left out."""
    given = {
        "gen_ai.provider.name": "baseload" if row.backend == "local" else row.backend,
        "gen_ai.request.model": row.model,
        "gen_ai.response.model": row.model,
        "gen_ai.usage.input_tokens": row.prompt_tokens,
        "gen_ai.usage.output_tokens": row.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": row.cached_tokens,
        "gen_ai.response.finish_reasons": [row.finish_reason] if row.finish_reason else None,
        "gen_ai.response.time_to_first_chunk": row.first_token_s,
        "gen_ai.request.seed": row.seed,
        "baseload.request_id": row.request_id,
        "baseload.role": row.role,
        "baseload.accepted": row.accepted,
        "baseload.device_seconds": row.device_seconds,
        "baseload.energy_joules": row.energy_joules,
        "baseload.internal_usd": row.internal_usd,
        "baseload.retail_usd": row.retail_usd,
    }
    return {name: value for name, value in given.items() if value is not None}


def _headers(text: str) -> dict[str, str]:
    """`name=value,name=value`, the values URL-encoded, as OpenTelemetry writes them."""
    pairs = (pair.partition("=") for pair in text.split(",") if "=" in pair)
    return {name.strip(): unquote(value.strip()) for name, _, value in pairs}


def _batches(exporter: SpanExporter) -> SpanProcessor:
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return BatchSpanProcessor(exporter)


def _exporter(url: str, headers: Mapping[str, str], egress: Egress) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class DoorExporter(SpanExporter):
        """Called in the batches' own thread; posts in the event loop, through the door."""

        def __init__(self) -> None:
            self._loop, self._failing = asyncio.get_running_loop(), False
            self._session: Session | None = None

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            body = encode_spans(spans).SerializeToString()
            sent = asyncio.run_coroutine_threadsafe(self._post(body), self._loop)
            try:
                problem = sent.result(EXPORT_S + 1)
            except TimeoutError:
                sent.cancel()
                problem = "it took too long"
            if problem and not self._failing:
                log.warning("spans are lost: %s", problem)
            self._failing = bool(problem)
            return SpanExportResult.FAILURE if problem else SpanExportResult.SUCCESS

        async def _post(self, body: bytes) -> str:
            """Why it failed; empty: it did not."""
            attempt_purpose.set("telemetry")
            if self._session is None:
                self._session = egress.session(connect_s=EXPORT_S)
            kind = {"content-type": "application/x-protobuf", **headers}
            try:
                async with asyncio.timeout(EXPORT_S), self._session.post(url, data=body, headers=kind) as answer:
                    return "" if answer.status < 300 else f"the collector said {answer.status}"
            except (*NETWORK_ERRORS, BaseloadError) as error:
                return str(error) or type(error).__name__

        def shutdown(self) -> None:
            if self._session is not None:
                asyncio.run_coroutine_threadsafe(self._session.close(), self._loop).result(EXPORT_S)

    return DoorExporter()
