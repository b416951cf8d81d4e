"""Google's answers: the stream and the whole, as we write them and as we read a supplier's."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.wire.chat import (
    Event,
    Extension,
    Failure,
    Finish,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from baseload.wire.google_generate import (
    StreamParser,
    parse_response,
    render_response,
)

from .google_speech import THINKING, asked, configured, meaning, parts, read, rendered


def test_every_chunk_of_a_text_is_a_response():
    events = [Usage(5, 0, 2), TextDelta("He", tokens=1), TextDelta("llo", tokens=1), Usage(5, 4, 2, 1), Finish("stop")]
    chunks = rendered(events)
    assert [part["text"] for part in parts(chunks)] == ["He", "llo", ""]
    assert all(c["modelVersion"] == "m" and c["responseId"] == "r1" for c in chunks)
    assert ["finishReason" in c["candidates"][0] for c in chunks] == [False, False, True]
    assert chunks[-1]["usageMetadata"] == {
        "promptTokenCount": 5, "candidatesTokenCount": 3, "totalTokenCount": 9, "cachedContentTokenCount": 2,
        "thoughtsTokenCount": 1,
    }  # fmt: skip


def test_a_call_goes_out_whole_and_once():
    events = [
        TextDelta("so"), ToolCallDelta(0, "c0", "add"), ToolCallDelta(0, arguments='{"a":'), ToolCallDelta(0, arguments="1}"),
        ToolCallDelta(1, "c1", "add", "{}"), Finish("tool_calls"),
    ]  # fmt: skip
    chunks = rendered(events)
    assert parts(chunks) == [
        {"text": "so"},
        {"functionCall": {"id": "c0", "name": "add", "args": {"a": 1}}},
        {"functionCall": {"id": "c1", "name": "add", "args": {}}},
    ]
    assert chunks[-1]["candidates"][0]["finishReason"] == "STOP"  # as the vendor ends its calls, too


def test_what_comes_after_a_call_or_a_signature_stays_after_it():
    call = {"functionCall": {"id": "c", "name": "add", "args": {}}}
    assert parts(rendered([ToolCallDelta(0, "c", "add", "{}"), TextDelta("b"), Finish("stop")]))[:2] == [call, {"text": "b"}]
    signed = [ReasoningDelta("", signature="google_generate:c2ln"), TextDelta("b"), Finish("stop")]
    assert parts(rendered(signed))[0] == {"text": "b", "thoughtSignature": "c2ln"}


def test_arguments_that_are_no_object_are_still_delivered():
    for wrong in ("[1]", "{", "[" * 200 + "]" * 200, '{"a": "\\ud800"}'):
        [part] = parts(rendered([ToolCallDelta(0, "c", "add", wrong), Finish("tool_calls")]))
        assert part["functionCall"]["args"] == {"input": wrong}


def test_thoughts_are_for_those_who_asked():
    events = [ReasoningDelta("hm"), TextDelta("hi"), Finish("stop")]
    assert parts(rendered(events))[0] == {"text": "hm", "thought": True}
    assert [p.get("thought") for p in parts(rendered(events, asked()))] == [None, None]


def test_a_signature_stays_with_its_call_and_anothers_is_kept_out():
    sent = [{"functionCall": {"name": "add", "args": {}, "id": "c"}, "thoughtSignature": "c2ln"}, {"functionCall": {
        "name": "add", "args": {}, "id": "d"}}]  # fmt: skip
    chunk = {"candidates": [{"content": {"parts": sent}, "finishReason": "STOP"}]}
    assert parts(rendered(read([chunk]), asked())) == sent
    foreign = [ReasoningDelta("", signature="anthropics"), *read([chunk])[1:]]
    assert not any("thoughtSignature" in part for part in parts(rendered(foreign)))


def test_what_only_this_protocol_knows_goes_through():
    grounding = {"groundingMetadata": {"webSearchQueries": ["x"]}}
    code = {"executableCode": {"language": "PYTHON", "code": "1"}}
    chunk = {"candidates": [{"content": {"parts": [code, {"text": "a"}]}, **grounding, "finishReason": "STOP"}]}
    events = read([chunk])
    assert [e.protocol for e in events if isinstance(e, Extension)] == ["google_generate"] * 2
    assert code in parts(rendered(events))
    whole = render_response(asked(), events, "r", 1, "m")["candidates"][0]
    assert whole["groundingMetadata"] == grounding["groundingMetadata"] and code in whole["content"]["parts"]
    assert parts(rendered([Extension("anthropic_messages", {"part": code}), Finish("stop")])) == [{"text": ""}]


def test_log_probabilities_there_and_back():
    entry = TokenLogprob("a", -0.5, b"a", 7, (TokenLogprob("a", -0.5, b"a", 7), TokenLogprob("b", -1.5, b"b", 8)))
    events = [TextDelta("a", 0, 1, (entry,)), TextDelta("a", 0, 1, (entry,)), Finish("stop")]
    want = configured(responseLogprobs=True, logprobs=2)
    assert want.sampling.logprobs == 2
    assert [e.logprobs for e in read(rendered(events, want)) if isinstance(e, TextDelta)] == [(entry,), (entry,)]
    [one] = [e for e in parse_response(render_response(want, events, "r", 1, "m"), 1) if isinstance(e, TextDelta)]
    assert one == TextDelta("aa", 0, 1, (entry, entry))


def test_a_refused_prompt_is_a_filtered_answer():
    refused = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 4}}
    assert read([refused]) == [Usage(4, 0), Finish("content_filter")]


@pytest.mark.parametrize("reason", ["MALFORMED_FUNCTION_CALL", "OTHER"])
def test_an_answer_that_could_not_be_made_is_a_failure(reason):
    [failure] = read([{"candidates": [{"finishReason": reason}]}])
    assert isinstance(failure, Failure) and failure.retryable


@pytest.mark.parametrize(("code", "status"), [(429, 429), (503, 503), (500, 502), ("x", 502)])
def test_an_error_within_the_stream(code, status):
    for shape in (lambda e: e, lambda e: [e]):
        parser = StreamParser(1)
        [failure] = parser.feed(json.dumps(shape({"error": {"code": code, "message": "no\nmore"}})))
        assert isinstance(failure, Failure) and (failure.status, failure.retryable) == (status, True)
        assert "no more" in failure.message and parser.close() == []


@pytest.mark.parametrize("usage", [{"promptTokenCount": -1}, {"promptTokenCount": 1.5}, {"candidatesTokenCount": True},
                                   {"thoughtsTokenCount": "7"}, {"promptTokenCount": 1, "cachedContentTokenCount": 2},
                                   {"candidatesTokenCount": 1 << 41}])  # fmt: skip
def test_a_count_that_cannot_be_is_no_count(usage):
    assert isinstance(read([{"usageMetadata": usage, "candidates": [{"finishReason": "STOP"}]}])[-1], Failure)


def test_thoughts_and_tools_are_paid_for():
    usage = {"promptTokenCount": 10, "toolUsePromptTokenCount": 5, "candidatesTokenCount": 3, "thoughtsTokenCount": 4,
             "cachedContentTokenCount": 6}  # fmt: skip
    assert read([{"usageMetadata": usage, "candidates": [{"finishReason": "STOP"}]}])[0] == Usage(15, 7, 6, 4)


TEXTS = st.text('ab é"\\\n', min_size=1, max_size=5)
SIGNATURES = st.none() | st.just("google_generate:c2ln")
DELTAS = st.one_of(
    st.builds(TextDelta, TEXTS, st.integers(0, 1), st.just(1)),
    st.builds(ReasoningDelta, TEXTS, st.integers(0, 1), st.just(1)),
    st.builds(lambda i, s: ReasoningDelta("", i, 0, s), st.integers(0, 1), st.just("google_generate:c2ln")),
    st.tuples(st.integers(0, 1), st.dictionaries(TEXTS, TEXTS, max_size=2), st.integers(0, 9), SIGNATURES),
)


def streams(drawn: Sequence[Any]) -> list[Event]:
    """Events of two choices; each tuple is a call, cut into two."""
    events, calls = list[Event](), [0, 0]
    for one in drawn:
        if not isinstance(one, tuple):
            events.append(one)
            continue
        index, args, cut, signature = one
        text, number = json.dumps(args), calls[index]
        calls[index] += 1
        signed = [ReasoningDelta("", index, 0, signature)] if signature else []
        events += [*signed, ToolCallDelta(number, f"c{number}", "add", text[:cut], index, 1)]
        events += [ToolCallDelta(number, None, None, text[cut:], index, 1)]
    return [*events, Usage(9, 5, 3, 2), Finish("tool_calls" if calls[0] else "stop"), Finish("length", 1)]


@given(st.lists(DELTAS, max_size=10))
def test_a_stream_keeps_its_meaning(drawn):
    events = streams(drawn)
    assert meaning(read(rendered(events), 2)) == meaning(events)


@given(st.lists(DELTAS, max_size=10))
def test_a_whole_answer_keeps_its_meaning(drawn):
    events = streams(drawn)
    assert meaning(parse_response(render_response(configured(**THINKING), events, "r", 1, "m"), 2)) == meaning(events)


@given(st.binary(max_size=40), st.integers(0, 300))
def test_whatever_a_supplier_sends_ends_once(noise, cut):
    text = "".join(json.dumps(c) + "\n" for c in rendered([Usage(3, 0), TextDelta("hello"), Usage(3, 1), Finish("stop")]))
    parser, events = StreamParser(1), list[Event]()
    for line in (text[:cut] + noise.decode("latin-1") + text[cut:]).split("\n"):
        events += parser.feed(line) if line else []
    events += parser.close()
    assert sum(isinstance(e, Finish | Failure) for e in events) == 1 and isinstance(events[-1], Finish | Failure)
    assert parser.ended and parser.feed("{}") == []


@pytest.mark.parametrize("chunk", ["[]", "3", '"x"', "[" * 500 + "]" * 500, '{"candidates": 1}', '{"candidates": [1]}',
                                   '{"candidates": [{"index": 7}]}', '{"candidates": [{"content": {"parts": [3]}}]}',
                                   '{"candidates": [{"content": {"parts": [{"text": "\\ud800"}]}}]}',
                                   '{"candidates": [{"content": {"parts": [{"functionCall": {"name": 3}}]}}]}',
                                   '{"candidates": [{"content": {"parts": [{"functionCall": {"name": "a", "args": []}}]}}]}',
                                   ])  # fmt: skip
def test_a_chunk_that_cannot_be_read_is_a_failure(chunk):
    parser = StreamParser(1)
    events = [*parser.feed(chunk), *parser.close()]
    assert [type(e) for e in events] == [Failure]
