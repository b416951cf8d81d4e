"""What bad or slow clients send, byte by byte: each costs itself only, and a good request beside it is answered."""

import contextlib
import json
import random
import re
import socket
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import uvloop

from baseload.server.app import create_app
from baseload.server.http_protocol import Limits, bounded
from baseload.server.run import Server, bind, uvicorn_config
from baseload.server.services import Services
from baseload.server.settings import ServerSettings, Settings
from baseload.wire.chat import ChatRequest, Event, Finish, TextDelta, Usage

LIMITS = Limits(header_bytes=4096, header_s=2.0, body_bytes=100_000, body_s=2.0, connections=12, linger_s=0.5)
BODY = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}).encode()
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


class Answering:
    """A router that says hi."""

    def resolve(self, name: str) -> str:
        return name

    def models(self) -> tuple[()]:
        return ()

    async def handle(self, request: ChatRequest, context: object) -> Any:
        return SimpleNamespace(events=self.events(), attempts=(), cost_usd=None, route="local")

    def tokenizing(self, name: str) -> Any:
        raise NotImplementedError

    async def count_tokens(self, request: ChatRequest) -> int:
        return 1

    async def events(self) -> AsyncGenerator[Event, None]:
        yield TextDelta("hi", tokens=1)
        yield Usage(1, 1)
        yield Finish("stop")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server with tight limits."""
    settings = Settings(server=ServerSettings(port=0))
    app = create_app(Services(Answering()), settings, env={})
    config = uvicorn_config(app, settings.server)
    config.http = bounded(LIMITS)
    config.timeout_keep_alive = 2
    listener = bind(settings.server)
    server = Server(config, app.state.life, 1.0)
    thread = threading.Thread(target=lambda: uvloop.run(server.serve(sockets=[listener])))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture(autouse=True)
def _a_good_request_is_answered_before_and_after(port: int) -> Iterator[None]:
    yield
    answer = httpx2.post(
        f"http://127.0.0.1:{port}/v1/chat/completions", content=BODY, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 200


def exchange(port: int, *pieces: bytes, pause: float = 0.0) -> bytes:
    """Send the pieces, then read until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        with contextlib.suppress(OSError):  # the server may have had enough; its answer is still to be read
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
        raw = b""
        with contextlib.suppress(OSError):
            while data := connection.recv(65536):
                raw += data
        return raw


def statuses(raw: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", raw)]


def error(raw: bytes) -> dict[str, str]:
    return json.loads(raw.partition(b"\r\n\r\n")[2])["error"]


@pytest.mark.parametrize(
    "raw",
    [
        HEAD
        + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: +5\r\n\r\nhello",
        HEAD + b"Content-Length: 0x10\r\n\r\n",
        HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
        HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n",
        b"GET /health HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"get /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"FROB /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\nHost: localhost\n\n",
        b"GET /heal\0th HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET http://evil.example/health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT evil.example:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\r\n\r\n\r\nGARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        GET + b"X A: b\r\n\r\n",
        GET + b"X: a\x00b\r\n\r\n",
    ],
)
def test_malformed_messages_are_400_once_and_the_connection_ends(port, raw):
    answer = exchange(port, raw)
    assert statuses(answer) == [400]
    assert error(answer)["type"] == "invalid_request_error"
    assert b"evil" not in answer
    assert b"connection: close" in answer


def test_a_good_request_before_garbage_is_answered_first_or_not_at_all(port):
    answer = exchange(port, GET + b"\r\n", b"GARBAGE\r\n\r\n", pause=0.1)
    assert statuses(answer) == [200, 400]


def test_pipelined_requests_are_answered_in_order(port):
    post = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    answer = exchange(port, GET + b"\r\n" + post + b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert statuses(answer) == [200, 200, 404]


def test_a_header_block_past_the_limit_is_431(port):
    for headers in (b"X: " + b"a" * 5000 + b"\r\n", b"".join(b"X-%d: y\r\n" % i for i in range(600))):
        answer = exchange(port, GET + headers + b"\r\n")
        assert statuses(answer) == [431]
        assert error(answer)["code"] == "headers_too_large"
    assert statuses(exchange(port, b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")) == [431]


def test_headers_without_end_are_cut_off_early(port):
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(GET)
        connection.setblocking(False)
        raw, sent, deadline = b"", 0, time.monotonic() + 5
        while not raw and time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError):
                sent += connection.send(b"X: " + b"a" * 8000 + b"\r\n")
            with contextlib.suppress(BlockingIOError):
                raw = connection.recv(65536)
        assert statuses(raw) == [431]
        assert sent < 16 * 2**20


def test_a_header_block_that_does_not_come_is_408(port):
    began = time.monotonic()
    answer = exchange(port, GET + b"X-Half: ")
    assert statuses(answer) == [408]
    assert 0.4 < time.monotonic() - began < 3


def test_a_header_block_that_drips_is_408_as_well(port):
    answer = exchange(port, *[bytes([byte]) for byte in GET[:30]], pause=0.05)
    assert statuses(answer) == [408]


def test_blank_lines_without_end_are_no_way_around_the_clock(port):
    assert statuses(exchange(port, *[b"\r\n"] * 30, pause=0.05)) in ([408], [])


def test_a_body_that_stops_coming_is_408(port):
    assert statuses(exchange(port, HEAD + b"Content-Length: 50\r\n\r\n{")) == [408]
    assert statuses(exchange(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{")) == [408]


def test_a_slow_but_steady_body_is_read(port):
    pieces = [BODY[i : i + 20] for i in range(0, len(BODY), 20)]
    answer = exchange(port, HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY), *pieces, pause=0.15)
    assert statuses(answer) == [200]


def test_a_body_past_the_limit_is_413_before_it_comes(port):
    for length in (100_001, 10_737_418_240):
        answer = exchange(port, HEAD + b"Content-Length: %d\r\n\r\n{" % length)
        assert statuses(answer) == [413]
        assert error(answer)["code"] == "request_too_large"


def test_a_large_body_sent_whole_still_gets_to_read_its_413(port):
    assert statuses(exchange(port, HEAD + b"Content-Length: 300000\r\n\r\n" + b" " * 300_000)) == [413]


def test_a_chunked_body_past_the_limit_is_413(port):
    chunk = b"2000\r\n" + b" " * 0x2000 + b"\r\n"
    assert statuses(exchange(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 20)) == [413]


def test_framing_counts_as_well(port):
    extension = b"1;" + b"a" * 3000 + b"\r\n \r\n"
    assert statuses(exchange(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[extension * 10] * 10)) == [413]
    trailers = b"0\r\n" + b"X: " + b"a" * 200_000
    head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    assert statuses(exchange(port, head, trailers)) == [413]
    assert statuses(exchange(port, head + trailers)) == [413]  # which may be one read: its start is not forgotten


def test_a_chunked_body_is_read_and_its_trailers_are_not_headers(port):
    trailers = b"0\r\nOrigin: https://evil.example\r\n\r\n"
    chunked = b"%x\r\n%s\r\n" % (len(BODY), BODY)
    answer = exchange(port, HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked + trailers)
    assert statuses(answer) == [200]


def test_a_body_longer_than_promised_is_not_read_on_as_part_of_it(port):
    answer = exchange(port, HEAD + b"Content-Length: 10\r\n\r\n" + BODY)
    assert statuses(answer)[0] == 400


def test_upgrades_are_answered_as_plain_http(port):
    upgrade = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    assert statuses(exchange(port, GET + upgrade)) == [200]


def test_http_1_0_is_spoken(port):
    assert statuses(exchange(port, b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")) == [200]


def test_expect_continue_is_answered_only_where_the_body_is_wanted(port):
    wanted = exchange(
        port, HEAD + b"Connection: close\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY), BODY, pause=0.1
    )
    assert statuses(wanted) == [100, 200]
    unwanted = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nConnection: close\r\n"
    assert statuses(exchange(port, unwanted + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")) == [415]


def test_an_idle_connection_is_closed_in_time(port):
    began = time.monotonic()
    assert exchange(port) == b""
    assert time.monotonic() - began < 4


def test_more_connections_than_allowed_are_told_so(port):
    held = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(LIMITS.connections)]
    time.sleep(0.1)
    answer = exchange(port)
    assert statuses(answer) == [503]
    assert b"retry-after: 2" in answer
    for connection in held:
        connection.close()
    time.sleep(0.1)


def test_the_connection_works_wherever_the_network_cuts_it(port):
    raw = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
    chance = random.Random(3)
    for _ in range(12):
        cuts = sorted(chance.sample(range(1, len(raw)), 5))
        pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
        assert statuses(exchange(port, *pieces, pause=0.005)) == [200]


def test_random_bytes_never_bring_it_down(port):
    chance = random.Random(4)
    good = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    for _ in range(60):
        raw = bytearray(good)
        for _ in range(chance.randrange(1, 6)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(bytes(raw))
            connection.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert all(status < 500 for status in statuses(answer)), bytes(raw)
