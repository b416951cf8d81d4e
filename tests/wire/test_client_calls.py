"""What HttpBackend sends, what it takes, and that each of its calls asks at the door."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from baseload.wire.backend import ModelInfo
from baseload.wire.chat import ChatRequest, Event, Failure, Finish, Message, Text, TextDelta
from baseload.wire.client import Connection, HttpBackend
from baseload.wire.egress import Egress, EgressRecord
from baseload.wire.errors import Unavailable
from baseload.wire.openai_chat import StreamParser, parse_request, render_request

REQUEST = ChatRequest("big", (Message("user", (Text("hi"),)),))
ANSWER = b'{"choices": [{"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}]}'
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
WORD = b'data: {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": %s}]}\n\n'
Serve = Callable[[asyncio.StreamWriter], Awaitable[None]]


def reply(status: int, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@asynccontextmanager
async def listening(answer: Serve) -> AsyncGenerator[tuple[int, list[int]], None]:
    """A server that answers each request on each connection with `answer`: (its port, requests by connection)."""
    seen: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine = len(seen)
        seen.append(0)
        with suppress(ConnectionError, asyncio.IncompleteReadError, ValueError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                await reader.readexactly(int(head.partition("content-length:")[2].split("\r\n")[0]))
                seen[mine] += 1
                await answer(writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], seen
    finally:
        server.close()


def backend(url: str, door: Egress | None = None, **times: Any) -> HttpBackend:
    return HttpBackend(Connection("acme", url, **times), [], door or Egress(frozenset(), unasked))


async def unasked(record: EgressRecord) -> None:
    raise AssertionError("loopback is not recorded")


async def collect(source: HttpBackend) -> list[Event]:
    try:
        async with asyncio.timeout(10):
            return [event async for event in source.generate(REQUEST)]
    finally:
        await source.close()


def only_failure(events: list[Event]) -> Failure:
    (failure,) = [e for e in events if isinstance(e, Failure | Finish)]
    assert isinstance(failure, Failure) and events[-1] is failure
    return failure


# ------------------------------------------------------------------------------------------------- what is taken


async def test_a_line_that_drips_in_is_silence():
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM)
        for byte in WORD % b"null":
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.05)

    async with listening(drip) as (port, _):
        events = await collect(backend(f"http://127.0.0.1:{port}", between_bytes_s=0.4))
    assert [type(e) for e in events] == [Failure] and "too long" in only_failure(events).message


async def test_comments_keep_a_slow_answer_alive():
    async def slow(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM)
        for _ in range(8):
            writer.write(b": thinking\n\n")
            await writer.drain()
            await asyncio.sleep(0.1)
        writer.write(WORD % b'"stop"' + b"data: [DONE]\n\n")

    async with listening(slow) as (port, _):
        events = await collect(backend(f"http://127.0.0.1:{port}", between_bytes_s=0.5))
    assert events == [TextDelta("a", tokens=1), Finish("stop")]


async def test_a_plain_server_that_is_spoken_to_in_tls():
    async def never(writer: asyncio.StreamWriter) -> None:
        raise AssertionError

    async with listening(never) as (port, _):
        failure = only_failure(await collect(backend(f"https://127.0.0.1:{port}", connect_s=2)))
    assert failure.status == 502 and failure.retryable


async def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch):
    async def nowhere(*args: Any, **kwargs: Any) -> Any:
        raise OSError(-2, "Name or service not known")

    async def write(record: EgressRecord) -> None:
        pass

    monkeypatch.setattr("aiohttp.ThreadedResolver.resolve", nowhere)
    door = Egress(frozenset({"supplier.invalid"}), write)
    failure = only_failure(await collect(backend("http://supplier.invalid", door)))
    assert "does not resolve" in failure.message and failure.retryable


@pytest.mark.parametrize("said", [b"", STREAM, STREAM + WORD % b"null", STREAM + b"data: {\n\n", None])
async def test_a_call_that_broke_off_may_be_asked_for_and_one_that_was_refused_or_never_made_is_not(said: bytes | None):
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(reply(503, b"{}") if said is None else said)
        await writer.drain()
        writer.close()

    async with listening(answer) as (port, _):
        failure = only_failure(await collect(backend(f"http://127.0.0.1:{port}")))
    assert failure.unanswered == (said is not None)
    nobody = only_failure(await collect(backend(f"http://127.0.0.1:{port}")))
    assert not nobody.unanswered


@pytest.mark.parametrize("reason", ["error", "abort", "cancelled"])
def test_an_answer_that_its_server_gave_up_is_no_answer(reason: str):
    parser = StreamParser(2)
    choices = [{"index": i, "delta": {"content": "a"}, "finish_reason": reason if i == 0 else None} for i in range(2)]
    events = [*parser.feed(json.dumps({"choices": choices})), *parser.close()]
    assert [type(e) for e in events] == [TextDelta, Failure]


@pytest.mark.parametrize(("sent", "read"), [("7", 7), ("99999", 300), ("-1", 0), ("nan", None), ("inf", None), ("soon", None)])
async def test_a_pause_that_is_asked_for_is_bounded(sent: str, read: float | None):
    async def refuse(writer: asyncio.StreamWriter) -> None:
        writer.write(reply(429, b"{}", f"retry-after: {sent}"))

    async with listening(refuse) as (port, _):
        failure = only_failure(await collect(backend(f"http://127.0.0.1:{port}")))
    assert (failure.status, failure.retry_after) == (429, read)


async def test_what_a_supplier_says_of_a_prompt_is_not_in_the_log(caplog: pytest.LogCaptureFixture):
    body = b'{"error": {"message": "cannot answer: my secret is 1234", "code": "bad\\nthing"}}'

    async def refuse(writer: asyncio.StreamWriter) -> None:
        writer.write(reply(400, body))

    with caplog.at_level(logging.INFO, "baseload.wire"):
        async with listening(refuse) as (port, _):
            failure = only_failure(await collect(backend(f"http://127.0.0.1:{port}")))
    assert failure.status == 400 and "secret" not in failure.message
    assert "400" in caplog.text and "bad\\nthing" in caplog.text and "secret" not in caplog.text


# ------------------------------------------------------------------------------------------------- what is sent


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "auto", "messages": [{"role": "user", "content": [CACHED], "unknown": 1}], **fields}


CACHED = {"type": "text", "text": "long", "cache_control": {"type": "ephemeral"}}


def test_messages_go_to_their_own_protocol_as_they_came():
    asked = parse_request(body())
    assert render_request(asked, "big")["messages"] == body()["messages"]


def test_an_escalation_adds_to_what_came():
    asked = parse_request(body())
    more = replace(asked, messages=(*asked.messages, *REQUEST.messages))
    assert render_request(more, "big")["messages"] == [*body()["messages"], {"role": "user", "content": "hi"}]


def test_a_message_that_was_changed_is_written_anew():
    asked = parse_request(body())
    other = replace(asked, messages=REQUEST.messages)
    assert render_request(other, "big")["messages"] == [{"role": "user", "content": "hi"}]


# ------------------------------------------------------------------------------------------------- connections

CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def calls(source: HttpBackend, n: int) -> list[list[Event]]:
    try:
        said = []
        async with asyncio.timeout(10):
            for _ in range(n):
                said.append([event async for event in source.generate(REQUEST)])
                await asyncio.sleep(0.1)
        return said
    finally:
        await source.close()


async def test_one_connection_serves_many_streams_though_the_transfers_end_comes_late():
    async def stream(writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + chunked(WORD % b'"stop"' + b"data: [DONE]\n\n"))
        await writer.drain()
        await asyncio.sleep(0.03)
        writer.write(b"0\r\n\r\n")

    async with listening(stream) as (port, requests):
        said = await calls(backend(f"http://127.0.0.1:{port}"), 3)
    assert said == [[TextDelta("a", tokens=1), Finish("stop")]] * 3
    assert requests == [3]


@pytest.mark.parametrize("after", [chunked(b"data: more\n\n"), b""], ids=["more", "nothing"])
async def test_a_transfer_that_does_not_end_costs_its_connection_and_nobody_waits_for_it(after: bytes):
    async def stream(writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + chunked(WORD % b'"stop"' + b"data: [DONE]\n\n"))
        await writer.drain()
        await asyncio.sleep(0.03)
        writer.write(after)

    async with listening(stream) as (port, requests):
        said = await calls(backend(f"http://127.0.0.1:{port}"), 3)
    assert said == [[TextDelta("a", tokens=1), Finish("stop")]] * 3
    assert requests == [1, 1, 1]


async def test_a_stream_that_ends_badly_costs_its_connection():
    async def stream(writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + chunked(b"data: nonsense\n\n") + b"0\r\n\r\n")

    async with listening(stream) as (port, _):
        for events in await calls(backend(f"http://127.0.0.1:{port}"), 2):
            assert only_failure(events).status == 502


async def test_text_that_comes_together_is_one_event():
    async def stream(writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + chunked(WORD % b"null" * 3 + WORD % b'"stop"' + b"data: [DONE]\n\n") + b"0\r\n\r\n")

    async with listening(stream) as (port, _):
        (events,) = await calls(backend(f"http://127.0.0.1:{port}"), 1)
    assert events == [TextDelta("aaaa", tokens=4), Finish("stop")]


# ------------------------------------------------------------------------------------------------- the door


async def test_a_call_over_a_connection_kept_open_is_written_down_too(monkeypatch: pytest.MonkeyPatch):
    from aiohttp import ThreadedResolver

    seen: list[EgressRecord] = []
    here = ThreadedResolver.resolve

    async def write(record: EgressRecord) -> None:
        seen.append(record)

    async def found(self: Any, host: str, port: int = 0, family: Any = 0) -> Any:
        return await here(self, "127.0.0.1", port)

    async def whole(writer: asyncio.StreamWriter) -> None:
        writer.write(reply(200, ANSWER))

    monkeypatch.setattr("aiohttp.ThreadedResolver.resolve", found)
    async with listening(whole) as (port, requests):
        source = backend(f"http://supplier.invalid:{port}", Egress(frozenset({"supplier.invalid"}), write))
        for _ in range(3):
            events = [event async for event in source.generate(REQUEST)]
            assert events[-1] == Finish("stop")
        await source.close()
    assert sum(requests) == 3 == len(seen)
    assert {(r.host, r.port, r.purpose, r.allowed) for r in seen} == {("supplier.invalid", port, "supplier", True)}


async def test_localhost_is_this_machine_whatever_a_resolver_says(monkeypatch: pytest.MonkeyPatch):
    looked_up: list[str] = []

    async def foreign(self: Any, host: str, port: int = 0, family: Any = 0) -> Any:
        looked_up.append(host)
        raise OSError("looked up")

    monkeypatch.setattr("aiohttp.ThreadedResolver.resolve", foreign)
    await collect(backend("http://localhost:1", Egress(frozenset(), unasked, air_gap=True)))
    assert looked_up in ([], ["127.0.0.1"])


@pytest.mark.parametrize("error", [RuntimeError("bug"), Unavailable("the ledger cannot be written")])
async def test_without_a_record_there_is_no_call_and_one_failure(error: Exception, monkeypatch: pytest.MonkeyPatch):
    async def write(record: EgressRecord) -> None:
        raise error

    async def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a name was looked up")

    monkeypatch.setattr("aiohttp.ThreadedResolver.resolve", never)
    failure = only_failure(await collect(backend("http://supplier.invalid", Egress(frozenset({"supplier.invalid"}), write))))
    assert failure.status == (503 if isinstance(error, Unavailable) else 500) and "bug" not in failure.message


# ------------------------------------------------------------------------------------------------- how much it shall think


@pytest.mark.parametrize(
    ("known", "asked", "told"),
    [
        (("low", "high"), "medium", "low"),
        (("low", "high"), "max", "high"),
        (("low", "high"), "none", "low"),
        (("none", "high"), "minimal", "none"),
        ((), "high", None),
        (("low",), None, None),
    ],
)
async def test_an_effort_is_one_that_the_model_knows(known, asked, told):
    seen: list[dict[str, Any]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        seen.append(json.loads(await reader.readexactly(int(head.partition("content-length:")[2].split("\r\n")[0]))))
        writer.write(reply(200, ANSWER))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        info = ModelInfo("acme/big", 100, local=False, efforts=known)
        source = HttpBackend(Connection("acme", url), [info], Egress(frozenset(), unasked))
        async for _ in source.generate(replace(REQUEST, effort=asked)):
            pass
        await source.close()
    assert seen[0].get("reasoning_effort") == told
