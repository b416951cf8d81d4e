"""OpenAI's plain completions: prompts, echo, the older logprobs."""

from typing import Any

import pytest

from baseload.wire.chat import Finish, TextDelta, TokenLogprob, Usage
from baseload.wire.errors import BadRequest
from baseload.wire.openai_completions import StreamRenderer, parse_completion_request, render_response


def ask(**fields: Any) -> Any:
    return parse_completion_request({"model": "m", "prompt": "hi", **fields})


@pytest.mark.parametrize(
    ("prompt", "read"),
    [("a", ["a"]), ([1, 2], [(1, 2)]), (["a", "b"], ["a", "b"]), ([[1], [2, 3]], [(1,), (2, 3)]), ("", [""])],
)
def test_prompts(prompt: Any, read: Any):
    assert [r.prompt for r in ask(prompt=prompt)] == read


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", None),
        ("prompt", 5),
        ("prompt", []),
        ("prompt", [[]]),
        ("prompt", [1, "a"]),
        ("prompt", [-1]),
        ("prompt", [True]),
        ("prompt", ["x"] * 129),
        ("max_tokens", 0),
        ("suffix", "x"),
        ("best_of", 2),
        ("logprobs", 21),
        ("echo", 1),
    ],
)
def test_a_bad_field_is_refused_by_name(field: str, value: Any):
    with pytest.raises(BadRequest) as refused:
        ask(**{field: value})
    assert (refused.value.param or "").startswith(field)


def test_too_many_choices_together():
    with pytest.raises(BadRequest):
        ask(prompt=["x"] * 100, n=3)


def test_the_default_length_is_openais():
    assert ask()[0].sampling.max_tokens == 16


def test_an_answer_with_the_older_logprobs():
    (request,) = ask(logprobs=1)
    said = [TokenLogprob(t, -1.0, t.encode(), 1, (TokenLogprob("z", -0.1, b"z"),)) for t in ("ab", "c")]
    events = [TextDelta("abc", 0, 2, tuple(said)), Usage(1, 2), Finish("length")]
    choice = render_response(request, events, "id", 1, "m")["choices"][0]
    assert choice["text"] == "abc" and choice["finish_reason"] == "length"
    assert choice["logprobs"]["tokens"] == ["ab", "c"] and choice["logprobs"]["text_offset"] == [0, 2]
    assert choice["logprobs"]["top_logprobs"] == [{"z": -0.1}, {"z": -0.1}]


def test_a_stream():
    (request,) = ask(stream=True, stream_options={"include_usage": True})
    renderer = StreamRenderer(request, "id", 1, "m")
    chunks: list[Any] = [c for e in (TextDelta("a", 0, 1), Usage(1, 1), Finish("stop")) for c in renderer.events(e)]
    assert chunks[0]["object"] == "text_completion" and chunks[0]["choices"][0]["text"] == "a"
    assert chunks[1]["choices"][0]["finish_reason"] == "stop"
    assert chunks[2]["usage"]["total_tokens"] == 2 and chunks[3] == "[DONE]"
