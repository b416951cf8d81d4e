"""The log: one line a request, nothing secret, nothing that forges or drives a terminal."""

import asyncio
import io
import json
import logging
from collections.abc import AsyncGenerator, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.server.logs import JsonLines, PlainLines, escaped, setup
from baseload.server.settings import LogSettings
from baseload.wire.chat import ChatRequest, Event, Finish


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What `setup` writes to; the root logger is put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("baseload").setLevel(logging.NOTSET)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_request_is_one_line_of_json_with_its_id(serve, stream):
    setup(LogSettings(), stream)
    running = serve(key="s3cret")
    answer = running.post(text="my private prompt", headers={"authorization": "Bearer s3cret"})
    running.until(lambda: "/v1/chat/completions" in stream.getvalue())
    line = next(line for line in lines(stream) if line["message"] == "POST /v1/chat/completions")
    assert line["request_id"] == answer.headers["x-baseload-request-id"]
    assert (line["status"], line["route"], line["model"]) == (200, "local", "tiny")
    assert (line["prompt_tokens"], line["completion_tokens"]) == (3, 3)
    assert isinstance(line["ms"], float)
    assert "private" not in stream.getvalue()
    assert "s3cret" not in stream.getvalue()


def test_refusals_and_streams_have_their_line(serve, stream):
    setup(LogSettings(), stream)
    running = serve()
    running.get("/v1/models", host="evil.example")
    running.post(stream=True)
    running.get("/invented?token=abc")
    running.until(lambda: "/invented" in stream.getvalue())
    told = [(line["message"], line["status"]) for line in lines(stream) if line["logger"] == "baseload.request"]
    assert told == [("GET /v1/models", 403), ("POST /v1/chat/completions", 200), ("GET /invented", 404)]
    assert "abc" not in stream.getvalue()


def test_an_unexpected_error_is_in_the_log_under_the_id_that_the_client_got(serve, stream):
    async def broken(_: ChatRequest) -> AsyncGenerator[Event, None]:
        raise ValueError("value 4711")
        yield Finish("stop")

    setup(LogSettings(), stream)
    running = serve(broken)
    answer = running.post()
    request_id = answer.headers["x-baseload-request-id"]
    assert "value 4711" not in answer.text
    assert request_id in answer.json()["error"]["message"]
    [line] = [line for line in lines(stream) if line["level"] == "error"]
    assert line["request_id"] == request_id
    assert "ValueError: value 4711" in str(line["trace"])


def test_a_client_that_left_is_499(serve, stream):
    async def silent(_: ChatRequest) -> AsyncGenerator[Event, None]:
        await asyncio.sleep(60)
        yield Finish("stop")

    setup(LogSettings(), stream)
    running = serve(silent)
    body = b'{"model":"tiny","messages":[{"role":"user","content":"x"}]}'
    with running.connect() as connection:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        running.until(lambda: running.router.started == 1)
    running.until(lambda: '"status": 499' in stream.getvalue())


@pytest.mark.parametrize(
    ("kind", "terminal", "is_json"),
    [("auto", True, False), ("auto", False, True), ("json", True, True), ("text", False, False)],
)
def test_the_format_follows_the_terminal_unless_told(stream, kind, terminal, is_json):
    out = Terminal() if terminal else io.StringIO()
    setup(LogSettings(format=kind), out)
    logging.getLogger("baseload.x").info("hello", extra={"request_id": "r1"})
    assert out.getvalue().startswith("{") is is_json
    assert "r1" in out.getvalue()


def test_the_level_is_kept(stream):
    setup(LogSettings(level="error", format="json"), stream)
    logging.getLogger("baseload.x").warning("quiet")
    logging.getLogger("baseload.x").error("loud")
    assert [line["message"] for line in lines(stream)] == ["loud"]


@given(st.text())
def test_no_text_makes_a_second_line_or_moves_a_cursor(text):
    record = logging.makeLogRecord({"msg": "%s", "args": (text,), "name": text, "levelname": "INFO", "path": text})
    for line in (PlainLines().format(record), JsonLines().format(record)):
        assert len(line.splitlines()) == 1
        assert not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in line)
    assert escaped("plain ü") == "plain ü"


def test_a_trace_keeps_its_lines_and_loses_its_escapes():
    try:
        raise ValueError("\x1b[31mred")
    except ValueError as error:
        record = logging.makeLogRecord(
            {"msg": "oh", "levelname": "ERROR", "exc_info": (ValueError, error, error.__traceback__)}
        )
    text = PlainLines().format(record)
    assert len(text.splitlines()) > 2
    assert "\x1b" not in text
