"""Google's generateContent: what clients send is understood, what they get is what it should be, and back again."""

import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.wire.chat import (
    ChatRequest,
    Image,
    Message,
    Reasoning,
    ResponseFormat,
    SamplingParams,
    Text,
    ToolCall,
    ToolResult,
    ToolSpec,
)
from baseload.wire.errors import BadRequest, ContextLengthExceeded, RateLimited
from baseload.wire.google_generate import (
    parse_count_request,
    parse_request,
    path,
    render_error,
    render_request,
)
from baseload.wire.openai_chat import PROTOCOL as OPENAI

from .google_speech import ADD, PNG, TOOLS, USER, asked, configured, turns


def test_a_conversation_with_tools():
    found = turns(
        *USER,
        {"role": "model", "parts": [
            {"text": "hm", "thought": True}, {"functionCall": {"name": "add", "args": {"a": 1}}, "thoughtSignature": "c2ln"},
            {"functionCall": {"name": "add", "args": {}, "id": "own"}}, {"executableCode": {"code": "1"}}]},
        {"role": "user", "parts": [
            {"functionResponse": {"name": "add", "id": "own", "response": {"error": "no"}}},
            {"functionResponse": {"name": "add", "response": {"output": "2"}}}, {"text": "so?"}]},
    )  # fmt: skip
    assert found[1:] == (
        Message("assistant", (Reasoning("hm"), Reasoning("", "google_generate:c2ln"), ToolCall("call_1", "add", '{"a": 1}'),
                              ToolCall("own", "add", "{}"))),
        Message("tool", (ToolResult("own", (Text("no"),), is_error=True),)),
        Message("tool", (ToolResult("call_1", (Text("2"),)),)),
        Message("user", (Text("so?"),)),
    )  # fmt: skip


def test_two_calls_of_one_name_are_answered_in_their_order():
    call, answer = {"functionCall": {"name": "add"}}, {"functionResponse": {"name": "add", "response": {"sum": 1}}}
    found = turns({"role": "model", "parts": [call, call]}, {"role": "function", "parts": [answer, answer, answer]})
    results = [m.content[0] for m in found[1:]]
    assert [r.call_id for r in results if isinstance(r, ToolResult)] == ["call_1", "call_2", "call_add"]
    assert results[0] == ToolResult("call_1", (Text('{"sum": 1}'),))


def test_both_spellings_mean_the_same():
    camel = {
        "contents": [{"role": "user", "parts": [{"inlineData": {"mimeType": "image/png", "data": PNG}}]}],
        "systemInstruction": {"parts": [{"text": "s"}]},
        "generationConfig": {"maxOutputTokens": 5, "topK": 40.0, "stopSequences": ["x"], "responseMimeType": "application/json",
                             "thinkingConfig": {"thinkingBudget": 0}},
        "tools": [{"functionDeclarations": [{"name": "add", "parametersJsonSchema": {"type": "object"}}]}],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["add"]}},
    }  # fmt: skip
    snake = {
        "contents": {"parts": {"inline_data": {"mime_type": "image/png", "data": PNG}}},
        "system_instruction": {"parts": {"text": "s"}},
        "generation_config": {"max_output_tokens": 5, "top_k": 40, "stop_sequences": ["x"],
                              "response_mime_type": "application/json", "thinking_config": {"thinking_budget": 0}},
        "tools": {"function_declarations": [{"name": "add", "parameters_json_schema": {"type": "object"}}]},
        "tool_config": {"function_calling_config": {"mode": "any", "allowed_function_names": ["add"]}},
    }  # fmt: skip
    one, other = parse_request(camel, "m", False), parse_request(snake, "m", False)
    assert replace(one, body={}) == replace(other, body={})
    assert one.messages[1].content == (Image("image/png", b"\x89PNG"),) and one.sampling.max_tokens == 5
    assert one.tool_choice == {"name": "add"} and one.effort == "none" and one.response_format.kind == "json_object"


def test_base64_of_either_alphabet():
    data = b"\xfb\xff\xfe\x00"
    part = {"inlineData": {"mimeType": "image/png", "data": urlsafe_b64encode(data).decode().rstrip("=")}}
    assert turns({"parts": [part]})[0].content == (Image("image/png", data),)
    text = {"inlineData": {"mimeType": "text/plain", "data": b64encode("é".encode()).decode()}}
    assert turns({"parts": [text]})[0].content == (Text("é"),)


def test_a_schema_of_this_protocol_is_a_json_schema():
    own = {
        "type": "OBJECT", "property_ordering": ["b", "a"], "required": ["a"],
        "properties": {
            "a": {"type": "STRING", "nullable": True, "enum": ["x"], "example": "x"},
            "type": {"type": "ARRAY", "items": {"$ref": "#/defs/T"}, "minItems": "2"},
            "b": {"any_of": [{"type": "NUMBER"}], "nullable": True},
        },
        "defs": {"T": {"type": "TYPE_UNSPECIFIED", "description": "d"}},
    }  # fmt: skip
    schema = configured(responseMimeType="application/json", responseSchema=own).response_format.schema
    assert schema == {
        "type": "object", "required": ["a"],
        "properties": {
            "b": {"anyOf": [{"type": "number"}, {"type": "null"}]},
            "a": {"type": ["string", "null"], "enum": ["x", None]},
            "type": {"type": "array", "items": {"$ref": "#/$defs/T"}, "minItems": 2},
        },
        "$defs": {"T": {"description": "d"}},
    }  # fmt: skip
    assert schema is not None and list(schema["properties"]) == ["b", "a", "type"]


@given(st.recursive(
    st.sampled_from([{"type": "string"}, {"const": 1}, {"type": ["integer", "null"]}, {"enum": ["A", None]}]),
    lambda inner: st.dictionaries(st.sampled_from(["items", "additionalProperties"]), inner, max_size=2)
    | st.builds(lambda p: {"type": "object", "properties": p}, st.dictionaries(st.sampled_from("abc"), inner, max_size=2))
    | st.builds(lambda a: {"anyOf": a}, st.lists(inner, min_size=1, max_size=2)), max_leaves=6))  # fmt: skip
def test_a_json_schema_stays_as_it_is(schema):
    declared = {"functionDeclarations": [{"name": "f", "parameters": schema}]}
    assert asked(tools=[declared]).tools[0].parameters == schema


def test_formats_and_efforts():
    assert configured(responseMimeType="text/x.enum", responseSchema={"type": "STRING", "enum": ["a", "b"]}).response_format \
        == ResponseFormat("choice", choices=("a", "b"))  # fmt: skip
    assert configured(responseJsonSchema={"type": "object"}).response_format.kind == "json_schema"
    budgets = {0: "none", -1: None, 500: "low", 5000: "medium", 30_000: "high"}
    assert {b: configured(thinkingConfig={"thinkingBudget": b}).effort for b in budgets} == budgets
    levels = {"MINIMAL": "minimal", "low": "low", "HIGH": "high", "XHIGH": "max"}
    assert {v: configured(thinkingConfig={"thinkingLevel": v}).effort for v in levels} == levels


def test_functions_and_which_may_be_called():
    two = [{"functionDeclarations": [ADD, {"name": "sub"}]}, {"googleSearch": {}}, {"codeExecution": {}}]
    assert [t.name for t in asked(tools=two).tools] == ["add", "sub"] and asked(tools=two).tool_choice == "auto"

    def chosen(mode: str, *names: str) -> tuple[list[str], Any]:
        found = asked(tools=two, toolConfig={"functionCallingConfig": {"mode": mode, "allowedFunctionNames": list(names)}})
        return [t.name for t in found.tools], found.tool_choice

    assert chosen("ANY") == (["add", "sub"], "required")
    assert chosen("ANY", "sub") == (["add", "sub"], {"name": "sub"})
    assert chosen("NONE") == (["add", "sub"], "none")
    assert chosen("VALIDATED", "sub") == (["sub"], "auto")
    assert asked(tools=[{"googleSearch": {}}]).tool_choice == "none"


def test_counting_takes_contents_or_a_whole_request():
    whole = {"contents": USER, "systemInstruction": {"parts": [{"text": "s"}]}}
    assert parse_count_request({"contents": USER}, "m").messages == asked().messages
    assert len(parse_count_request({"generateContentRequest": whole}, "m").messages) == 2


def test_a_request_of_this_protocol_keeps_its_fields():
    sent = {"contents": USER, "safetySettings": [{"category": "x"}], "baseload": {"allow_suppliers": True},
            "generation_config": {"top_k": 3, "seed": 4, "speechConfig": {}}, "newer": 1}  # fmt: skip
    assert render_request(parse_request(sent, "m", True), "gemini", drop=("topK", "newer")) == {
        "contents": USER, "safetySettings": [{"category": "x"}], "generation_config": {"seed": 4, "speechConfig": {}},
    }  # fmt: skip


def test_an_added_message_follows_the_own():
    first = asked(contents=[{"role": "user", "parts": [{"text": "q"}], "newer": 1}])
    more = replace(first, messages=(*first.messages, Message("assistant", (Text("no"),)), Message("user", (Text("again"),))))
    sent = render_request(more, "gemini")["contents"]
    assert sent[0]["newer"] == 1 and [c["role"] for c in sent] == ["user", "model", "user"]
    changed = replace(first, messages=(Message("system", (Text("s"),)), *first.messages))
    assert render_request(changed, "gemini") == {"contents": [{"role": "user", "parts": [{"text": "q"}]}],
                                                 "systemInstruction": {"parts": [{"text": "s"}]}}  # fmt: skip


def test_another_protocols_call_bears_the_word_for_a_missing_signature_where_one_is_asked_for():
    calls = Message("assistant", (ToolCall("c", "add", "{}"), ToolCall("d", "add", "{}")))
    answers = [Message("tool", (ToolResult(id, (Text("2"),)),)) for id in "cd"]
    request = ChatRequest("m", (Message("user", (Text("q"),)), calls, *answers), protocol=OPENAI)

    def signatures(model: str) -> list[Any]:
        return [part.get("thoughtSignature") for part in render_request(request, model)["contents"][1]["parts"]]

    assert signatures("gemini-2.5-pro") == [None, None]
    assert signatures("gemini-3-pro") == signatures("gemini-4") == ["skip_thought_signature_validator", None]
    assert len(render_request(request, "gemini-3")["contents"][2]["parts"]) == 2  # both results in one turn


WORDS = st.text("ab c", min_size=1, max_size=4)
BLOCKS = st.builds(Text, WORDS) | st.just(Image("image/png", b"x"))


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Message, ...]:
    out = [Message("system", (Text(draw(WORDS)),))] if draw(st.booleans()) else []
    for turn in range(draw(st.integers(1, 3))):
        out.append(Message("user", tuple(draw(st.lists(BLOCKS, min_size=1, max_size=2)))))
        signed = [Reasoning("", "google_generate:c2ln")] if draw(st.booleans()) else []
        calls = [ToolCall(f"c{turn}{i}", draw(WORDS), json.dumps(draw(st.dictionaries(WORDS, WORDS)))) for i in range(2)]
        out.append(Message("assistant", (*draw(st.lists(st.builds(Text, WORDS), max_size=1)), *signed, *calls)))
        out += [Message("tool", (ToolResult(c.id, (Text(draw(WORDS)),), draw(st.booleans())),)) for c in calls]
    return tuple(out)


SAMPLINGS = st.builds(
    SamplingParams, temperature=st.sampled_from([0.0, 0.5, 1.0]), top_p=st.sampled_from([0.5, 1.0]),
    top_k=st.sampled_from([0, 5]), max_tokens=st.none() | st.integers(1, 9), seed=st.none() | st.integers(0, 99),
    stop=st.sampled_from([(), ("a", "b")]), n=st.integers(1, 2),
    logprobs=st.none() | st.integers(0, 3), presence_penalty=st.sampled_from([0.0, 1.0]),
)  # fmt: skip
FORMATS = st.sampled_from([
    ResponseFormat(), ResponseFormat("json_object"), ResponseFormat("choice", choices=("a",)),
    ResponseFormat("json_schema", schema={"type": "object"}, strict=True),
])  # fmt: skip
EFFORTS = st.sampled_from([None, "none", "low", "medium", "high"])
CHOICES = st.sampled_from(["auto", "none", "required", {"name": "add"}])


@given(conversations(), SAMPLINGS, FORMATS, EFFORTS, CHOICES)
def test_another_protocols_request_keeps_its_meaning(messages, sampling, form, effort, choice):
    tools = (ToolSpec("add", "Adds", {"type": "object"}), ToolSpec("sub"))
    sent = ChatRequest("m", messages, None, sampling, tools, choice, response_format=form, effort=effort, protocol=OPENAI)
    again = parse_request(render_request(sent, "gemini"), "m", True)
    assert joined(again.messages) == joined(messages)
    assert (again.sampling, again.tools, again.tool_choice) == (sampling, tools, choice)
    assert (again.response_format, again.effort) == (form, effort)


def joined(messages: Sequence[Message]) -> list[tuple[str, list[Any]]]:
    """What each speaker said in a row."""
    out: list[tuple[str, list[Any]]] = []
    for m in messages:
        if out and out[-1][0] == m.role:
            out[-1][1].extend(m.content)
        else:
            out.append((m.role, list(m.content)))
    return out


def test_the_path_quotes_a_models_name():
    assert path("gemini-x") == "/v1beta/models/gemini-x:streamGenerateContent?alt=sse"
    assert path("a/../b?c#d").startswith("/v1beta/models/a%2F..%2Fb%3Fc%23d:")


def test_errors_have_googles_shape():
    limited = render_error(RateLimited("later", retry_after=2.5))["error"]
    assert (limited["code"], limited["status"]) == (429, "RESOURCE_EXHAUSTED")
    assert limited["details"][-1]["retryDelay"] == "2.5s"
    with pytest.raises(BadRequest) as caught:
        asked(contents=[])
    assert render_error(caught.value)["error"]["details"][1]["fieldViolations"][0]["field"] == "contents"
    long = ContextLengthExceeded("This model's maximum context length is 8192 tokens. However, your prompt has 9000 tokens.")
    assert render_error(long)["error"]["message"] == (
        "The input token count (9000) exceeds the maximum number of tokens allowed (8192)."
    )


# --------------------------------------------------------------------------------------------- what is refused


def part(**fields: Any) -> dict[str, Any]:
    return {"contents": [{"parts": [fields]}]}


def config(**fields: Any) -> dict[str, Any]:
    return {"generationConfig": fields}


def function(**fields: Any) -> dict[str, Any]:
    return {"tools": [{"functionDeclarations": [fields]}]}


def calling(**fields: Any) -> dict[str, Any]:
    return {"tools": TOOLS, "toolConfig": {"functionCallingConfig": fields}}


DEEP: dict[str, Any] = {}
for _ in range(70):
    DEEP = {"items": DEEP}
BAD = [
    ({"contents": None}, "contents"), ({"contents": []}, "contents"), ({"contents": "hi"}, "contents"),
    ({"contents": [3]}, "contents[0]"), ({"contents": [{"role": "system", "parts": []}]}, "role"),
    ({"contents": [{"role": 3, "parts": []}]}, "role"), ({"contents": [{"parts": "x"}]}, "parts"),
    ({"contents": [{"parts": [3]}]}, "parts[0]"), (part(text=3), "text"), (part(text="x", thought="yes"), "thought"),
    (part(text="x", thoughtSignature=3), "thoughtSignature"), (part(functionCall=3), "functionCall"),
    (part(functionCall={}), "functionCall.name"), (part(functionCall={"name": 3}), "name"),
    (part(functionCall={"name": "a", "args": []}), "args"), (part(functionCall={"name": "a", "id": 3}), "id"),
    (part(functionResponse={"response": {}}), "functionResponse.name"),
    (part(functionResponse={"name": "a", "response": "x"}), "response"),
    (part(functionResponse={"name": "a", "id": 1}), "id"), (part(functionResponse={"name": "a", "parts": 3}), "parts"),
    (part(inlineData={"data": PNG}), "mimeType"), (part(inlineData={"mimeType": "image/png"}), "data"),
    (part(inlineData={"mimeType": "image/png", "data": "%%"}), "data"),
    (part(inlineData={"mimeType": "audio/wav", "data": PNG}), "data"),
    (part(inlineData={"mimeType": "text/plain", "data": PNG}), "data"),
    (part(fileData={"fileUri": "http://x"}), "fileData"), (part(file_data={"file_uri": "http://x"}), "fileData"),
    ({"systemInstruction": 3}, "systemInstruction"), ({"systemInstruction": {"parts": [{"functionCall": {}}]}}, "[0]"),
    ({"systemInstruction": {"parts": [{"text": 3}]}}, "text"), ({"system_instruction": [4]}, "systemInstruction"),
    ({"cachedContent": "cachedContents/1"}, "cachedContent"), ({"generationConfig": 3}, "generationConfig"),
    (config(temperature=3), "temperature"), (config(temperature="1"), "temperature"), (config(topP=0), "topP"),
    (config(top_p=1.5), "topP"), (config(topK=-1), "topK"), (config(topK=1.5), "topK"),
    (config(maxOutputTokens=0), "maxOutputTokens"), (config(max_output_tokens="9"), "maxOutputTokens"),
    (config(candidateCount=0), "candidateCount"), (config(candidateCount=1000), "candidateCount"), (config(seed="a"), "seed"),
    (config(seed=1.5), "seed"), (config(presencePenalty=3), "presencePenalty"),
    (config(frequencyPenalty=-3), "frequencyPenalty"),
    (config(stopSequences="x"), "stopSequences"), (config(stopSequences=[""]), "stopSequences"),
    (config(responseLogprobs=1), "responseLogprobs"), (config(logprobs=3), "logprobs"),
    (config(responseLogprobs=True, logprobs=21), "logprobs"), (config(responseMimeType="image/png"), "responseMimeType"),
    (config(responseMimeType=3), "responseMimeType"), (config(responseSchema=[]), "responseSchema"),
    (config(responseMimeType="text/plain", responseSchema={}), "responseMimeType"),
    (config(responseSchema=DEEP), "responseSchema"), (config(responseSchema={"ref": "http://x"}), "responseSchema"),
    (config(responseJsonSchema={"$ref": "http://x"}), "responseJsonSchema"),
    (config(responseJsonSchema=True), "responseJsonSchema"),
    (config(responseMimeType="text/x.enum"), "responseSchema"),
    (config(responseMimeType="text/x.enum", responseSchema={"enum": [1]}), "enum"),
    (config(thinkingConfig=1), "thinkingConfig"), (config(thinkingConfig={"thinkingBudget": -2}), "thinkingBudget"),
    (config(thinkingConfig={"thinkingLevel": "LOTS"}), "thinkingLevel"),
    (config(thinkingConfig={"includeThoughts": 1}), "includeThoughts"),
    ({"tools": 3}, "tools"), ({"tools": [3]}, "tools[0]"), ({"tools": [{"functionDeclarations": 3}]}, "functionDeclarations"),
    ({"tools": [{"functionDeclarations": [3]}]}, "functionDeclarations[0]"), (function(), "name"),
    (function(name="a b"), "name"),
    (function(name="a", description=3), "description"), (function(name="a", description="x" * 70_000), "description"),
    (function(name="a", parameters=3), "parameters"), (function(name="a", parametersJsonSchema=3), "parametersJsonSchema"),
    (function(name="a", parameters=DEEP), "parameters"), ({"toolConfig": 3}, "toolConfig"),
    (calling(mode="SOME"), "mode"), (calling(mode=3), "mode"), (calling(mode="ANY", allowedFunctionNames=["x"]), "allowed"),
    (calling(allowedFunctionNames="add"), "allowed"), (calling(allowedFunctionNames=[{}]), "allowed"),
    ({"toolConfig": {"functionCallingConfig": {"mode": "ANY"}}}, "mode"),
    ({"baseload": {"x": 1}}, "baseload"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "named"), BAD, ids=lambda v: json.dumps(v)[:60])
def test_a_bad_field_is_named(fields, named):
    with pytest.raises(BadRequest) as caught:
        asked(**fields)
    assert named in (caught.value.param or "") and named in caught.value.message


@pytest.mark.parametrize("model", ["", "x" * 300])
def test_a_bad_name_is_named(model):
    with pytest.raises(BadRequest, match="model"):
        asked(model)


KEYS = ["type", "role", "parts", "text", "thought", "name", "args", "response", "functionCall", "functionResponse",
        "inlineData", "data", "mimeType", "functionDeclarations", "parameters", "properties", "items", "mode", "topK",
        "functionCallingConfig", "thinkingConfig", "responseSchema", "enum", "nullable",
        "propertyOrdering", "stopSequences"]  # fmt: skip
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "a", "ANY", "image/png", "text/plain", "AAAA"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=14,
)
FIELDS = ["contents", "systemInstruction", "tools", "toolConfig", "generationConfig", "baseload", "generateContentRequest"]


@given(st.sampled_from(FIELDS), JSON)
def test_no_value_does_more_than_be_refused(field, value):
    with suppress(BadRequest):
        asked(**{field: value})
    with suppress(BadRequest):
        parse_count_request({"contents": USER, field: value}, "m")
    with suppress(BadRequest):
        render_request(asked(**{field: value}), "gemini-3", drop=("topK",))
