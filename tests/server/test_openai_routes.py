"""Chat and completions over HTTP: answers, streams, headers, errors."""

import asyncio
import json
import threading
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from baseload.wire.chat import ChatRequest, Event, Failure, Finish, TextDelta, Usage
from baseload.wire.errors import Forbidden, RateLimited


def sse(text: str) -> list[Any]:
    """The data of an event stream; "[DONE]" as it is."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def fails_at_once(_: ChatRequest) -> AsyncGenerator[Event, None]:
    yield Failure("The queue is full.", 429, "rate_limit_error", "rate_limit_exceeded", True, 1.5)


async def fails_midway(_: ChatRequest) -> AsyncGenerator[Event, None]:
    yield TextDelta("so far", tokens=2)
    await asyncio.sleep(0.05)
    yield Failure("The supplier broke off.", 502, "server_error", "upstream_error")


async def raises_midway(_: ChatRequest) -> AsyncGenerator[Event, None]:
    yield TextDelta("so far", tokens=2)
    raise ValueError("secret detail in /home/user/file.py")


async def breaks_off(_: ChatRequest) -> AsyncGenerator[Event, None]:
    yield TextDelta("so far", tokens=2)


async def ends_twice(_: ChatRequest) -> AsyncGenerator[Event, None]:
    yield TextDelta("fine", tokens=1)
    yield Finish("stop")
    yield Finish("length")
    yield Failure("too late")


def test_an_answer_carries_its_id_route_attempts_and_cost(serve):
    running = serve()
    answer = running.post(text="good morning")
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "good morning "
    assert answer.json()["usage"]["completion_tokens"] == 2
    assert answer.headers["x-baseload-route"] == "local"
    assert answer.headers["x-baseload-attempts"] == "1"
    assert float(answer.headers["x-baseload-cost-usd"]) == 0.0
    _, context = running.router.asked[0]
    assert answer.headers["x-baseload-request-id"] == context.request_id
    assert answer.json()["id"].removeprefix("chatcmpl-") in context.request_id


def test_two_answers_have_two_ids(serve):
    running = serve()
    ids = {running.post().headers["x-baseload-request-id"] for _ in range(3)}
    assert len(ids) == 3


def test_a_stream_ends_with_done_and_says_the_same(serve):
    answer = serve().post(text="one two three", stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-baseload-route"] == "local"
    chunks = sse(answer.text)
    assert chunks[-1] == "[DONE]"
    assert chunks.count("[DONE]") == 1
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks[:-1] if c["choices"])
    assert text == "one two three "


def test_a_streams_headers_come_before_its_first_token(serve):
    go = threading.Event()

    async def late(ask: ChatRequest) -> AsyncGenerator[Event, None]:
        while not go.is_set():
            await asyncio.sleep(0.01)
        yield TextDelta("now", tokens=1)
        yield Finish("stop")

    running = serve(late)
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": True}
    with httpx2.stream("POST", running.url + "/v1/chat/completions", json=body, timeout=10) as answer:
        assert answer.headers["x-baseload-request-id"].startswith("req_")
        go.set()
        assert sse("".join(answer.iter_text()))[-1] == "[DONE]"


def test_silence_is_filled_with_comments(serve, monkeypatch):
    monkeypatch.setattr("baseload.server.streaming.KEEP_ALIVE_S", 0.05)

    async def checked(ask: ChatRequest) -> AsyncGenerator[Event, None]:
        await asyncio.sleep(0.6)
        yield TextDelta("accepted", tokens=1)
        yield Finish("stop")

    text = serve(checked).post(stream=True).text
    assert text.startswith(": keep-alive\n\n")
    assert sse(text)[-1] == "[DONE]"


def test_what_is_ready_together_is_written_together(serve):
    async def burst(ask: ChatRequest) -> AsyncGenerator[Event, None]:
        for _ in range(50):
            yield TextDelta("x", tokens=1)
        yield Finish("stop")

    running = serve(burst)
    connection = running.connect()
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": True}).encode()
    connection.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    raw = b"".join(iter(lambda: connection.recv(65536), b""))
    framed = raw.partition(b"\r\n\r\n")[2]
    assert framed.count(b"data: ") > 50
    assert framed.count(b"\r\n") <= 6  # one chunk with everything, and the end


def test_an_answer_that_fails_at_once_has_its_own_status_even_if_a_stream_was_asked_for(serve):
    running = serve(fails_at_once)
    for stream in (False, True):
        answer = running.post(stream=stream)
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "2"
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize(("script", "code"), [(fails_midway, "upstream_error"), (raises_midway, None), (breaks_off, None)])
def test_a_stream_that_breaks_ends_with_an_error_and_done(serve, script, code):
    answer = serve(script).post(stream=True)
    assert answer.status_code in (200, 500)
    assert "/home" not in answer.text
    assert "ValueError" not in answer.text
    if answer.status_code == 200:
        *_, error, done = sse(answer.text)
        assert done == "[DONE]"
        assert error["error"]["message"]
        assert code in (None, error["error"]["code"])
        assert '"finish_reason":"stop"' not in answer.text


@pytest.mark.parametrize(("script", "status"), [(fails_midway, 502), (raises_midway, 500), (breaks_off, 500)])
def test_the_same_failures_are_a_status_without_a_stream(serve, script, status):
    answer = serve(script).post()
    assert answer.status_code == status
    assert "/home" not in answer.text
    assert answer.json()["error"]["type"] == "server_error"
    assert answer.headers["x-baseload-request-id"]


def test_a_stream_ends_once_whatever_its_source_does(serve):
    chunks = sse(serve(ends_twice).post(stream=True).text)
    reasons = [c["choices"][0]["finish_reason"] for c in chunks[:-1] if c["choices"] and c["choices"][0].get("finish_reason")]
    assert reasons == ["stop"]
    assert chunks.count("[DONE]") == 1


def test_a_renderer_that_fails_ends_the_stream_cleanly(serve, monkeypatch):
    from baseload.server import openai

    class Broken:
        def __init__(self, *_: object) -> None: ...

        def events(self, event: Event) -> list[dict[str, object]]:
            raise KeyError("internal")

    monkeypatch.setattr(openai, "CHAT", replace(openai.CHAT, stream=Broken))
    answer = serve().post(stream=True)
    *_, error, done = sse(answer.text)
    assert (error["error"]["code"], done) == ("internal_error", "[DONE]")
    assert "KeyError" not in answer.text


def test_a_refusal_by_the_router_keeps_status_and_shape(serve):
    running = serve()
    running.router.error = Forbidden("This machine is air-gapped.", code="air_gap")
    answer = running.post(stream=True)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "air_gap")
    running.router.error = RateLimited("Busy.", retry_after=7)
    assert running.post().headers["retry-after"] == "7"
    running.router.error = ZeroDivisionError("in /home/x/y.py")
    answer = running.post()
    assert answer.status_code == 500
    assert "/home" not in answer.text
    running.router.error = None
    assert running.post().status_code == 200


def test_several_prompts_are_answered_at_once_and_in_order(serve):
    waiting = asyncio.Semaphore(0)

    async def meet(ask: ChatRequest) -> AsyncGenerator[Event, None]:
        # Each prompt waits for the others: run one after another, this would never end.
        waiting.release()
        while waiting._value < 3:
            await asyncio.sleep(0.01)
        for index in range(2):
            yield TextDelta(f"{ask.prompt}{index}", index=index, tokens=1)
        yield Usage(4, 2)
        for index in range(2):
            yield Finish("stop", index)

    answer = serve(meet).post("/v1/completions", model="tiny", prompt=["a", "b", "c"], n=2, max_tokens=5)
    assert answer.status_code == 200
    assert [(c["index"], c["text"]) for c in answer.json()["choices"]] == list(enumerate(["a0", "a1", "b0", "b1", "c0", "c1"]))
    assert answer.json()["usage"]["prompt_tokens"] == 12
    assert answer.headers["x-baseload-attempts"] == "3"


def test_several_prompts_stream_with_their_indexes(serve):
    running = serve()
    answer = running.post("/v1/completions", model="tiny", prompt=["a b", "c"], stream=True)
    chunks = sse(answer.text)
    texts = {0: "", 1: ""}
    for chunk in chunks[:-1]:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == {0: "a b ", 1: "c "}
    ids = [context.request_id for _, context in running.router.asked]
    assert len(set(ids)) == 2
    assert answer.headers["x-baseload-request-id"] in ids


def test_one_failed_prompt_fails_them_all(serve):
    async def second_fails(ask: ChatRequest) -> AsyncGenerator[Event, None]:
        if ask.prompt == "b":
            yield Failure("no", 502, "server_error", "upstream_error")
        else:
            await asyncio.sleep(30)
            yield Finish("stop")

    running = serve(second_fails)
    assert running.post("/v1/completions", model="tiny", prompt=["a", "b"]).status_code == 502
    assert running.router.closed == 2


def test_models_are_listed_and_found_by_name(serve):
    running = serve()
    listed = running.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [m["id"] for m in listed["data"]] == ["tiny", "far/big"]
    assert listed["data"][0] == {"id": "tiny", "object": "model", "created": 7, "owned_by": "baseload", "max_model_len": 2048}
    assert running.get("/v1/models/far/big").json()["owned_by"] == "far"
    missing = running.get("/v1/models/nope")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_an_unknown_model_is_404_unless_a_default_takes_it(serve):
    answer = serve().post(model="gpt-9")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    running = serve(default_model="auto")
    assert running.post(model="gpt-9").status_code == 200
    assert running.router.asked[0][0].model == "auto"


def test_unknown_paths_and_methods_answer_in_openais_shape(serve):
    running = serve()
    missing = running.get("/v1/nothing")
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "invalid_request_error")
    wrong = running.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.json()["error"]["code"], wrong.headers["allow"]) == (405, "method_not_allowed", "POST")
    assert running.get("/docs").status_code == 404


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'"x"', b"{}", b'{"model":"tiny"}', b"\xff\xfe{}"])
def test_bodies_that_are_no_request_are_400(serve, content):
    headers = {"content-type": "application/json"}
    answer = httpx2.post(serve().url + "/v1/chat/completions", content=content, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_only_plain_json_is_read(serve):
    url = serve().url + "/v1/chat/completions"
    for headers in (
        {"content-type": "text/plain"},
        {"content-type": ""},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ):
        assert httpx2.post(url, content=b"{}", headers=headers).status_code == 415


def test_a_large_body_is_parsed_beside_the_event_loop(serve):
    async def measure(ask: ChatRequest) -> AsyncGenerator[Event, None]:
        yield TextDelta(str(len(ask.messages[-1].text)), tokens=1)
        yield Finish("stop")

    answer = serve(measure).post(text="word " * 200_000)
    assert answer.json()["choices"][0]["message"]["content"] == "1000000"


def test_more_answers_than_allowed_are_429(serve):
    go = threading.Event()

    async def held(ask: ChatRequest) -> AsyncGenerator[Event, None]:
        while not go.is_set():
            await asyncio.sleep(0.01)
        yield Finish("stop")

    running = serve(held, max_in_flight=2)
    threads = [threading.Thread(target=running.post) for _ in range(2)]
    for thread in threads:
        thread.start()
    running.until(lambda: running.router.started == 2)
    answer = running.post()
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert running.get("/health").status_code == 200
    go.set()
    for thread in threads:
        thread.join()
    assert running.post().status_code == 200
