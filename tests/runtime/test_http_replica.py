"""Another server as a replica: what it is sent, what its silence means, and how it says that it is ready."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress

import pytest

from baseload.runtime.http_replica import HttpReplica, as_ours, root_of
from baseload.runtime.replica_sets import ReplicaError, parse_replicas
from baseload.wire import anthropic_messages
from baseload.wire.chat import ChatRequest, Failure, Finish, Message, SamplingParams, Text, TextDelta
from baseload.wire.egress import Egress, EgressRecord

ASK = ChatRequest("m", (Message("user", (Text("hi"),)),))
Answer = Callable[[str, bytes, asyncio.StreamWriter], Awaitable[None]]


async def unasked(record: EgressRecord) -> None:
    raise AssertionError("loopback is not recorded")


DOOR = Egress(frozenset(), unasked)


@asynccontextmanager
async def listening(answer: Answer) -> AsyncIterator[HttpReplica]:
    """A replica over a server that answers each request with `answer(path, body, writer)`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = head.partition("content-length:")[2].split("\r\n")[0]
                await answer(head.split()[1], await reader.readexactly(int(length or 0)), writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    replica = HttpReplica("127.0.0.1:1", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", "theirs", DOOR, "key")
    try:
        yield replica
    finally:
        await replica.disconnect()
        server.close()


def status(code: int, body: str = "{}", kind: str = "application/json") -> bytes:
    return f"HTTP/1.1 {code} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()


@pytest.mark.parametrize(
    ("answers", "state"),
    [
        ({"/ready": 200}, "up"),
        ({"/ready": 503}, "unready"),
        ({"/ready": 404, "/health": 200}, "up"),
        ({"/ready": 404, "/health": 500}, "unready"),
    ],
)
async def test_a_server_says_whether_it_is_ready(answers: dict[str, int], state: str):
    async def answer(path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(status(answers[path]))

    async with listening(answer) as replica:
        assert [await replica.probe(), await replica.probe()] == [state, state]


async def test_nobody_there_is_down_and_silence_is_no_answer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("baseload.runtime.http_replica.PROBE_S", 0.1)

    async def answer(path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async with listening(answer) as replica:
        assert await replica.probe() is None
    nobody = HttpReplica("r", "http://127.0.0.1:1/v1", "theirs", DOOR)
    assert await nobody.probe() == "down"
    await nobody.disconnect()


async def test_disconnecting_ends_what_waits_for_a_server_that_says_nothing():
    asked = asyncio.Event()

    async def answer(path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await asyncio.sleep(60)

    async with listening(answer) as replica:

        async def listen() -> list[object]:
            async with aclosing(replica.generate(ASK)) as events:
                return [event async for event in events]

        task = asyncio.create_task(listen())
        await asked.wait()
        await replica.disconnect()
        [failure] = await asyncio.wait_for(task, 10)
        assert isinstance(failure, Failure) and failure.status == 502
        assert failure.message.startswith("The server ") and "127.0.0.1" not in failure.message


async def test_chats_and_plain_prompts_go_where_they_belong_under_the_servers_own_name():
    seen: list[tuple[str, dict[str, object]]] = []

    async def answer(path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        seen.append((path, json.loads(body)))
        said = {"text": "a"} if path == "/v1/completions" else {"message": {"content": "a"}}
        writer.write(status(200, json.dumps({"choices": [{"index": 0, **said, "finish_reason": "stop"}]})))

    async with listening(answer) as replica:
        for request in (ASK, ChatRequest("m", prompt=(1, 2)), ChatRequest("m", prompt="x")):
            async with aclosing(replica.generate(request)) as events:
                assert [event async for event in events] == [TextDelta("a", 0, 1), Finish("stop")]
    assert [path for path, _ in seen] == ["/v1/chat/completions", "/v1/completions", "/v1/completions"]
    assert [body.get("prompt") for _, body in seen] == [None, [1, 2], "x"]
    assert {body["model"] for _, body in seen} == {"theirs"}


def test_another_protocols_request_keeps_what_openais_has_no_field_for():
    asked = anthropic_messages.parse_request(
        {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}], "top_k": 7}
    )
    body = as_ours(asked).body
    assert (body["top_k"], body["max_tokens"]) == (7, 5)
    own = as_ours(ChatRequest("m", ASK.messages, sampling=SamplingParams(min_p=0.2, ignore_eos=True), protocol="ollama")).body
    assert (own["min_p"], own["ignore_eos"], "top_k" in own) == (0.2, True, False)


def test_a_servers_own_pages_stand_before_its_api():
    assert root_of("http://h:1/v1") == root_of("http://h:1/v1/") == root_of("http://h:1") == "http://h:1"
    assert root_of("https://h/a/v1") == "https://h/a"


GOOD = {"model": "m", "base_urls": ["http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1"], "context_length": 100}


def test_a_set_of_replicas_is_read():
    [found] = parse_replicas([GOOD | {"tools": True, "patience_s": 3}], air_gap=True)
    pool = found.pool(DOOR, None)  # pyright: ignore[reportArgumentType]
    assert list(pool.replicas) == ["127.0.0.1:1", "127.0.0.1:2"]
    assert (pool.models[0].id, pool.models[0].context_length, pool.models[0].tools) == ("m", 100, True)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"base_url": "x"}, "unknown key 'base_url'"),
        ({"base_urls": []}, "base_urls must be a list"),
        ({"base_urls": ["ftp://x"]}, "no http or https address"),
        ({"base_urls": ["http://127.0.0.1:1/v1", "http://127.0.0.1:1/v1/"]}, "stands twice"),
        ({"context_length": "long"}, "context_length must be of type int"),
        ({"context_length": 0}, "at least one token"),
        ({"model": "a b"}, "plain name"),
        ({"patience_s": -1}, "patience_s"),
        ({"base_urls": ["http://10.0.0.1:1/v1"]}, "another machine"),
    ],
)
def test_a_wrong_set_is_refused_in_one_line(changed: dict[str, object], said: str):
    with pytest.raises(ReplicaError, match=said):
        parse_replicas([GOOD | changed], air_gap=True)
    with pytest.raises(ReplicaError, match="two tables"):
        parse_replicas([GOOD, GOOD])


async def test_a_call_to_another_machine_is_written_down_for_what_it_is():
    records: list[EgressRecord] = []

    async def record(entry: EgressRecord) -> None:
        records.append(entry)

    replica = HttpReplica("r", "http://replica.invalid/v1", "theirs", Egress(frozenset({"replica.invalid"}), record))
    assert await replica.probe() == "down"
    async with aclosing(replica.generate(ASK)) as events:
        assert [type(event) for event in [e async for e in events]] == [Failure]
    await replica.disconnect()
    assert {(r.host, r.purpose, r.allowed) for r in records} == {
        ("replica.invalid", "replica's health", True),
        ("replica.invalid", "replica", True),
    }
