"""Google's own SDK as the judge of what we send as a server, and of what we ask as a client."""

# Nearly all that the SDK reads may be None by its types; the assertions would find it.
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from google import genai
from google.genai import errors, types

from baseload.wire.chat import Event, Failure, Finish, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from baseload.wire.errors import BaseloadError, ModelNotFound
from baseload.wire.google_generate import (
    PING,
    StreamRenderer,
    headers,
    parse_request,
    path,
    render_count,
    render_error,
    render_request,
    render_response,
)
from baseload.wire.sse import data_event

CONTENT = "It's 20\u00a0°C.\u2028So warm."


class Server:
    """Answers the SDK with `events` by this protocol, over no network."""

    def __init__(self, *events: Event, error: BaseloadError | None = None) -> None:
        self.events, self.error = events, error
        self.requests: list[httpx2.Request] = []
        transport = httpx2.MockTransport(self._answer)
        options = types.HttpOptions(
            base_url="http://127.0.0.1:9", httpx_client=httpx2.Client(transport=transport),
            httpx_async_client=httpx2.AsyncClient(transport=transport), retry_options=types.HttpRetryOptions(attempts=1),
        )  # fmt: skip
        self.client = genai.Client(api_key="k", http_options=options)

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        if self.error:
            return httpx2.Response(self.error.status, json=render_error(self.error))
        body, (model, verb) = json.loads(request.content), request.url.path.rpartition("/")[2].split(":")
        if verb == "countTokens":
            return httpx2.Response(200, json=render_count(7))
        asked = parse_request(body, model, verb == "streamGenerateContent")
        if not asked.stream:
            return httpx2.Response(200, json=render_response(asked, self.events, "r", 1, model))
        renderer = StreamRenderer(asked, "r", 1, model)
        return httpx2.Response(200, content=b"".join(_framed(renderer, self.events)))


def _framed(renderer: StreamRenderer, events: Sequence[Event]) -> Iterator[bytes]:
    for event in events:
        yield PING
        yield renderer.plain(event) or b"".join(data_event(chunk) for chunk in renderer.events(event))


PLACE = types.Schema(type=types.Type.OBJECT, properties={"at": types.Schema(type=types.Type.STRING)})
WEATHER = types.Tool(function_declarations=[types.FunctionDeclaration(name="weather", parameters=PLACE)])
TALK = [Usage(9, 0, 4), *(TextDelta(c, tokens=1) for c in CONTENT), Usage(9, 6, 4, 2), Finish("stop")]
CALLS = [
    ReasoningDelta("hm"), TextDelta("so"), ToolCallDelta(0, "c0", "weather"), ToolCallDelta(0, arguments='{"at":'),
    ToolCallDelta(0, arguments='"Rome"}'), ToolCallDelta(1, "c1", "weather", '{"at": "Oslo"}'), Usage(9, 6),
    Finish("tool_calls"),
]  # fmt: skip


def test_it_reads_a_text():
    whole = Server(*TALK).client.models.generate_content(model="m", contents="q")
    streamed = list(Server(*TALK).client.models.generate_content_stream(model="m", contents="q"))
    assert whole.text == "".join(chunk.text for chunk in streamed) == CONTENT
    for last in (whole, streamed[-1]):
        assert last.candidates[0].finish_reason == types.FinishReason.STOP and last.response_id == "r"
        used = last.usage_metadata
        assert (used.prompt_token_count, used.cached_content_token_count, used.total_token_count) == (9, 4, 15)
        assert (used.candidates_token_count, used.thoughts_token_count) == (4, 2)


async def test_it_reads_a_text_asynchronously():
    chunks = await Server(*TALK).client.aio.models.generate_content_stream(model="m", contents="q")
    assert "".join([chunk.text async for chunk in chunks]) == CONTENT


@pytest.mark.parametrize("stream", [False, True])
def test_it_reads_thoughts_and_calls(stream: bool):
    config = types.GenerateContentConfig(
        tools=[WEATHER], thinking_config=types.ThinkingConfig(include_thoughts=True),
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
    )  # fmt: skip
    models = Server(*CALLS).client.models
    ask: Any = models.generate_content_stream if stream else models.generate_content
    answer = ask(model="m", contents="q", config=config)
    parts = [part for chunk in (answer if stream else [answer]) for part in chunk.candidates[0].content.parts]
    assert [(p.text, bool(p.thought)) for p in parts if p.text] == [("hm", True), ("so", False)]
    calls = [part.function_call for part in parts if part.function_call]
    assert [(c.id, c.name, c.args) for c in calls] == [("c0", "weather", {"at": "Rome"}), ("c1", "weather", {"at": "Oslo"})]


def test_a_signature_comes_back_as_it_went():
    signed = [ReasoningDelta("", signature="google_generate:c2ln"), *CALLS[2:]]
    server = Server(*signed)
    chat = server.client.chats.create(model="m", config=types.GenerateContentConfig(
        tools=[WEATHER], automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True)))  # fmt: skip
    chat.send_message("q")
    chat.send_message(types.Part.from_function_response(name="weather", response={"output": "warm"}))
    asked = parse_request(json.loads(server.requests[-1].content), "m", False)
    assert [b.signature for m in asked.messages for b in m.content if hasattr(b, "signature")] == ["google_generate:c2ln"]
    assert asked.messages[-1].content[0].call_id == "c0"  # pyright: ignore


def test_it_calls_functions_by_itself():
    def weather(at: str) -> str:
        """The weather."""
        server.events = tuple(TALK)
        return "warm"

    server = Server(*CALLS[2:5], Usage(9, 6), Finish("tool_calls"))
    config = types.GenerateContentConfig(tools=[weather])
    assert server.client.models.generate_content(model="m", contents="q", config=config).text == CONTENT
    again = parse_request(json.loads(server.requests[-1].content), "m", False)
    assert [m.role for m in again.messages] == ["user", "assistant", "tool"]


def test_it_counts():
    assert Server().client.models.count_tokens(model="m", contents="q").total_tokens == 7


def test_it_knows_our_errors():
    with pytest.raises(errors.ClientError) as caught:
        Server(error=ModelNotFound("There is no such model.")).client.models.generate_content(model="m", contents="q")
    assert (caught.value.code, caught.value.status, caught.value.message) == (404, "NOT_FOUND", "There is no such model.")


def test_it_knows_a_failure_amid_a_stream():
    chunks = Server(TextDelta("a"), Failure("gone", 503)).client.models.generate_content_stream(model="m", contents="q")
    assert next(chunks).text == "a"
    with pytest.raises(errors.ServerError) as caught:
        list(chunks)
    assert (caught.value.code, caught.value.status, caught.value.message) == (503, "UNAVAILABLE", "gone")


def test_what_we_ask_is_what_it_asks():
    """The same call, once by the SDK and once in the neutral language: the request and where it goes to."""
    server = Server(*TALK)
    config = types.GenerateContentConfig(
        system_instruction="s", temperature=0.5, top_p=0.5, top_k=4, max_output_tokens=9, seed=3, stop_sequences=["x"],
        response_mime_type="application/json", response_json_schema={"type": "object"},
        tools=[types.Tool(function_declarations=[types.FunctionDeclaration(name="f", description="F")])],
        tool_config=types.ToolConfig(function_calling_config=types.FunctionCallingConfig(
            mode=types.FunctionCallingConfigMode.ANY, allowed_function_names=["f"])),
    )  # fmt: skip
    list(server.client.models.generate_content_stream(model="gemini-3", contents="q", config=config))
    [request] = server.requests
    asked = parse_request(json.loads(request.content), "gemini-3", True)
    assert render_request(asked, "gemini-3") == json.loads(request.content)
    ours = _plainer(render_request(replace(asked, protocol="openai_chat", body={}), "gemini-3"))
    assert ours == _plainer(json.loads(request.content))
    assert request.url.raw_path.decode() == path("gemini-3").replace("v1beta", "v1")
    assert headers("k").items() <= dict(request.headers).items()


def _plainer(body: dict[str, Any]) -> Any:
    """Without what means nothing: the role of instructions."""
    body["systemInstruction"].pop("role", None)
    return json.loads(json.dumps(body))
