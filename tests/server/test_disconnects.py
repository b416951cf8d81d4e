"""A client that goes away takes its work with it, whatever phase it is in."""

import asyncio
import json
import random
import socket
import struct
import time
from collections.abc import AsyncGenerator

import pytest

from baseload.server.http_protocol import Limits
from baseload.wire.chat import ChatRequest, Event, Finish, TextDelta


def request_bytes(stream: bool) -> bytes:
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": stream}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def silent(_: ChatRequest) -> AsyncGenerator[Event, None]:
    await asyncio.sleep(60)
    yield Finish("stop")


async def endless(_: ChatRequest) -> AsyncGenerator[Event, None]:
    while True:
        yield TextDelta("word ", tokens=1)
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("script", [silent, endless])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("reset", [True, False])
def test_work_stops_when_the_client_leaves(serve, script, stream, reset):
    running = serve(script)
    connection = running.connect()
    connection.sendall(request_bytes(stream))
    running.until(lambda: running.router.started == 1)
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    running.until(lambda: running.router.closed == 1, 2)
    running.until(lambda: running.app.state.life.in_flight == 0, 2)
    assert 'finished_reason="abort"' in running.get("/metrics").text


def test_work_stops_when_the_client_leaves_while_the_router_decides(serve):
    running = serve()
    entered = []

    async def deciding(request, context):
        entered.append(1)
        await asyncio.sleep(60)

    running.router.handle = deciding
    connection = running.connect()
    connection.sendall(request_bytes(stream=False))
    running.until(lambda: bool(entered))
    connection.close()
    running.until(lambda: running.app.state.life.in_flight == 0, 2)


def test_two_hundred_drops_at_random_moments_leave_nothing(serve):
    async def varied(ask: ChatRequest) -> AsyncGenerator[Event, None]:
        await asyncio.sleep(random.random() / 20)
        for _ in range(20):
            yield TextDelta("word ", tokens=1)
            await asyncio.sleep(0.002)
        yield Finish("stop")

    running = serve(varied)
    chance = random.Random(1)
    for _ in range(200):
        data = request_bytes(stream=chance.random() < 0.5)
        connection = running.connect()
        connection.sendall(data[: chance.randrange(len(data))] if chance.random() < 0.3 else data)
        time.sleep(chance.random() / 100)
        connection.close()
    running.until(lambda: running.router.started == running.router.closed)
    assert running.app.state.life.in_flight == 0
    assert running.post().status_code == 200


def test_a_reader_that_stalls_stops_the_source_and_is_dropped(serve):
    produced = 0

    async def torrent(_: ChatRequest) -> AsyncGenerator[Event, None]:
        nonlocal produced
        while True:
            produced += 1
            yield TextDelta("x" * 1000, tokens=1)
            if produced % 100 == 0:
                await asyncio.sleep(0)

    running = serve(torrent, limits=Limits(stall_s=0.5))
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", running.port))
    connection.sendall(request_bytes(stream=True))
    running.until(lambda: running.router.closed == 1, 10)
    assert produced < 30_000  # held back by the reader's pace: not much more than the kernel's buffers
    assert running.get("/health").status_code == 200
    connection.close()


def test_a_reader_that_is_slow_but_reads_is_kept(serve):
    async def torrent(_: ChatRequest) -> AsyncGenerator[Event, None]:
        while True:
            yield TextDelta("x" * 1000, tokens=1)

    running = serve(torrent, limits=Limits(stall_s=0.3))
    with running.connect() as connection:
        connection.sendall(request_bytes(stream=True))
        began = time.monotonic()
        while time.monotonic() - began < 1.5:
            assert connection.recv(300_000)
            time.sleep(0.05)
        assert running.router.closed == 0
    running.until(lambda: running.router.closed == 1)
