"""Spans by the GenAI conventions: what they say, what they keep quiet, and that they leave through the door or not at all."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from baseload.ledger import Ledger
from baseload.router import Policy, Router
from baseload.router.router import RequestContext
from baseload.router.suppliers.profile import parse_profile
from baseload.server import tracing
from baseload.server.settings import TelemetrySettings
from baseload.wire.backend import ModelInfo
from baseload.wire.chat import ChatRequest, Event, Failure, Finish, Message, Text, TextDelta, Usage
from baseload.wire.egress import Egress, EgressRecord
from baseload.wire.errors import EgressDenied

SECRET = "the launch code is 0000"


class Says:
    """A backend that says one thing, or fails."""

    def __init__(self, model: ModelInfo, events: list[Event]) -> None:
        self.models, self._events = (model,), events

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        for event in self._events:
            yield event

    def count_tokens(self, request: ChatRequest) -> int | None:
        return 4


def answer(text: str, **more: Any) -> list[Event]:
    return [TextDelta(text, tokens=1), Usage(10, 4, 6, **more), Finish("stop")]


async def spans_of(tmp_path: Path, model: str, local: list[Event], away: list[Event]) -> Any:
    ledger, kept = Ledger.open(f"sqlite:///{tmp_path}/ledger.db"), InMemorySpanExporter()
    traced = tracing.Tracing(SimpleSpanProcessor(kept))
    ledger.watch = traced.saw
    profile = parse_profile("acme", {"base_url": "http://127.0.0.1:1", "models": [{"id": "big", "context_length": 9000}]})
    policy = Policy(allowed_suppliers=frozenset({"acme"}), ladder=("acme/big",))
    places = {"acme": (profile, Says(profile.models[0], away))}
    router = Router([Says(ModelInfo("tiny", 4096), local)], places, policy, ledger)
    handling = await router.handle(ChatRequest(model, (Message("user", (Text(SECRET),)),)), RequestContext("req_1", "key_1"))
    async for _ in handling.events:
        pass
    ledger.close()
    await traced.close()
    return {span.name: span for span in kept.get_finished_spans()}


async def test_a_local_answer(tmp_path: Path):
    found = await spans_of(tmp_path, "local", answer(SECRET, device_seconds=0.5, input_seconds=0.1), [])
    call, request = found["chat tiny"], found["baseload local"]
    assert (call.kind, request.kind) == (SpanKind.INTERNAL, SpanKind.SERVER)
    assert call.parent.span_id == request.context.span_id and call.context.trace_id == request.context.trace_id
    said = dict(call.attributes)
    for name, value in {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "baseload",
        "gen_ai.request.model": "tiny",
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.usage.cache_read.input_tokens": 6,
        "gen_ai.response.finish_reasons": ("stop",),
        "baseload.device_seconds": 0.5,
        "baseload.request_id": "req_1",
    }.items():
        assert said[name] == value, name
    assert "baseload.internal_usd" not in said  # nobody said what the machine costs
    assert (request.attributes["baseload.key_id"], request.attributes["baseload.status"]) == ("key_1", "done")
    assert request.start_time <= call.start_time <= call.end_time <= request.end_time
    assert SECRET not in "".join(span.to_json() for span in found.values())


async def test_a_failed_call_and_the_supplier_that_took_over(tmp_path: Path):
    broken: list[Event] = [Failure("no", 503, "server_error", "engine_restarted", retryable=True)]
    found = await spans_of(tmp_path, "auto", broken, answer("fine"))
    failed, away = found["chat tiny"], found["chat acme/big"]
    assert (failed.status.status_code, failed.attributes["error.type"]) == (StatusCode.ERROR, "engine_restarted")
    assert (away.kind, away.attributes["gen_ai.provider.name"]) == (SpanKind.CLIENT, "acme")
    assert failed.parent.span_id == away.parent.span_id == found["baseload auto"].context.span_id
    assert found["baseload auto"].status.status_code is StatusCode.UNSET


async def test_a_request_that_failed_says_so(tmp_path: Path):
    found = await spans_of(tmp_path, "local", [Failure("no", 500, "server_error", "broken")], [])
    request = found["baseload local"]
    assert (request.status.status_code, request.attributes["error.type"]) == (StatusCode.ERROR, "broken")


async def never(record: EgressRecord) -> None:
    raise AssertionError(f"{record} went out")


class Collector:
    """Listens on this machine and keeps what it is sent."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.sent: list[ExportTraceServiceRequest] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        self.heads.append(head)
        self.sent.append(ExportTraceServiceRequest.FromString(await reader.readexactly(length)))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()


async def test_spans_reach_a_collector_on_this_machine_even_in_an_air_gap(tmp_path: Path):
    collector = Collector()
    server = await asyncio.start_server(collector.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_HEADERS": "x-token=a%20b", "OTEL_SERVICE_NAME": "plant"}
    traced = tracing.begin(TelemetrySettings(), Egress(frozenset(), never, air_gap=True), env)
    assert traced is not None
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.db")
    ledger.watch = traced.saw
    router = Router([Says(ModelInfo("tiny", 4096), answer("hi"))], {}, Policy(), ledger)
    handling = await router.handle(ChatRequest("local", (Message("user", (Text("hi"),)),)), RequestContext("req_1"))
    async for _ in handling.events:
        pass
    await traced.close()
    ledger.close()
    server.close()
    (sent,) = collector.sent
    resource = {a.key: a.value.string_value for a in sent.resource_spans[0].resource.attributes}
    names = {span.name for span in sent.resource_spans[0].scope_spans[0].spans}
    assert (resource["service.name"], names) == ("plant", {"chat tiny", "baseload local"})
    assert b"POST /v1/traces" in collector.heads[0] and b"x-token: a b" in collector.heads[0].lower()


def settings(url: str) -> TelemetrySettings:
    return TelemetrySettings(otlp_endpoint=url)


@pytest.mark.parametrize(
    ("url", "air_gap", "why"),
    [
        ("https://collector.example:4318", True, "air gap"),
        ("https://elsewhere.example:4318", False, "not on the list"),
        ("grpc://collector.example:4317", False, "is no http address"),
    ],
)
async def test_what_may_not_leave_is_not_sent(url: str, air_gap: bool, why: str, caplog: pytest.LogCaptureFixture):
    door = Egress(frozenset({"collector.example"}), never, air_gap=air_gap)
    with caplog.at_level(logging.ERROR, "baseload.server"):
        assert tracing.begin(settings(url), door, {}) is None
    assert why in caplog.text
    assert tracing.begin(TelemetrySettings(), door, {}) is None  # nothing is set: nothing is sent


async def test_each_export_is_recorded_before_it_is_dialled(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    asked: list[tuple[str, str]] = []

    async def refuse(record: EgressRecord) -> None:
        asked.append((record.host, record.purpose))
        raise EgressDenied("The ledger is full.")

    door = Egress(frozenset(tracing.host(settings("https://collector.example"), {})), refuse)
    traced = tracing.begin(settings("https://collector.example"), door, {})
    assert traced is not None
    traced._tracer.start_span("one").end()
    with caplog.at_level(logging.WARNING, "baseload.server"):
        await traced.close()
    assert asked == [("collector.example", "telemetry")]
    assert "spans are lost: The ledger is full." in caplog.text
