"""Plain completions, asked of another server: what we send is what we would read, and what it answers is what we would say."""

import json

from hypothesis import given
from hypothesis import strategies as st

from baseload.wire import openai_completions
from baseload.wire.chat import ChatRequest, Event, Finish, SamplingParams, TextDelta, TokenLogprob, Usage
from baseload.wire.completions_upstream import COMPLETIONS, StreamParser, render_request
from baseload.wire.openai_completions import StreamRenderer, parse_completion_request

TOP = (TokenLogprob("a", -0.5, b"a"), TokenLogprob("b", -1.5, b"b"))
EVENTS: list[Event] = [
    TextDelta("a", 0, 1, (TokenLogprob("a", -0.5, b"a", top=TOP),)),
    TextDelta("b", 1, 1, (TokenLogprob("b", -1.5, b"b", top=TOP),)),
    TextDelta("c", 0, 1, (TokenLogprob("c", -0.1, b"c"),)),
]
ENDS: list[Event] = [Usage(3, 3, 1), Finish("length", 0), Finish("stop", 1)]


def test_a_stream_that_we_write_is_read_as_it_was():
    request = ChatRequest("m", prompt="x", sampling=SamplingParams(n=2, logprobs=2), stream=True, include_usage=True)
    writer, reader = StreamRenderer(request, "id", 0, "m"), StreamParser(2)
    chunks = [chunk for event in [*EVENTS, *ENDS] for chunk in writer.events(event)]
    read = [e for chunk in chunks for e in reader.feed(chunk if isinstance(chunk, str) else json.dumps(chunk))]
    assert read == [*EVENTS, *ENDS] and reader.ended


def test_a_whole_answer_is_read_too():
    request = ChatRequest("m", prompt="x", sampling=SamplingParams())
    body = openai_completions.render_response(request, [TextDelta("word", 0, 1), *ENDS[:2]], "id", 0, "m")
    assert COMPLETIONS.whole(body, 1) == [TextDelta("word", 0, 1), *ENDS[:2]]


@given(
    st.one_of(st.text(min_size=1), st.lists(st.integers(0, 50000), min_size=1).map(tuple)),
    st.builds(
        SamplingParams,
        temperature=st.floats(0, 2),
        top_k=st.integers(0, 100),
        seed=st.none() | st.integers(0, 99),
        max_tokens=st.integers(1, 99),
        n=st.integers(1, 4),
        stop=st.lists(st.text(min_size=1, max_size=5), max_size=3).map(tuple),
        logprobs=st.none() | st.integers(1, 5),
    ),
)
def test_what_is_sent_means_what_was_asked(prompt, sampling: SamplingParams):
    body = json.loads(json.dumps(render_request(ChatRequest("m", prompt=prompt, sampling=sampling, protocol="ollama"), "m")))
    [found] = parse_completion_request(body)
    assert (found.prompt, found.sampling, found.stream, found.include_usage) == (prompt, sampling, True, True)


def test_a_prompt_of_several_goes_alone_with_its_bodys_fields():
    body = {"model": "m", "prompt": ["a", "b"], "min_p": 0.1, "best_of": 1, "baseload": {"task": "t"}}
    sent = render_request(parse_completion_request(body)[1], "theirs")
    assert (sent["prompt"], sent["min_p"], sent["model"]) == ("b", 0.1, "theirs")
    assert not {"baseload", "best_of"} & set(sent)


def test_a_chunk_of_the_wrong_form_ends_it():
    for chunk in ('{"choices": [{"index": 0, "text": 5}]}', '{"choices": [{"index": 7, "text": "a"}]}', "[]", "{"):
        [failure] = StreamParser(1).feed(chunk)[-1:]
        assert type(failure).__name__ == "Failure"
