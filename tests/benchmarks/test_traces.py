"""Traces: read as published, shared beginnings as recorded, cut to a context, and turned into text that keeps all that."""

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.benchmarks.trace_prompts import Measure, fit, prompts
from baseload.benchmarks.traces import Recorded, cut, read_trace, shared_tokens

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:05.0000000,110,0
"""
MOONCAKE = """{"timestamp": 3000, "input_length": 600, "output_length": 50, "hash_ids": [0, 7]}
{"timestamp": 4500, "input_length": 1100, "output_length": 5, "hash_ids": [0, 7, 9]}
{"timestamp": 4500, "input_length": 512, "output_length": 5, "hash_ids": [0]}
"""
AGENTIC = """trace_id,agent,seq,t_s,model,input_tokens,output_tokens,prefix_seen_tokens,api_time_s,think_time_s,stop
a,main,0,0.0,m,1000,20,0,1,0,tool_use
a,main,1,9.5,m,1500,30,960,1,0,tool_use
a,sub,2,5.0,m,300,30,0,1,0,tool_use
b,main,0,0.0,m,700,30,0,1,0,tool_use
"""


def read(tmp_path: Path, text: str, **more: int) -> list[Recorded]:
    path = tmp_path / "trace.gz"
    path.write_bytes(gzip.compress(text.encode()))
    return read_trace(path, **more)


def test_azure_tells_lengths_and_times(tmp_path: Path):
    first, second = read(tmp_path, AZURE)
    assert (first.at_s, first.input_tokens, first.output_tokens) == (0.0, 4808, 10)
    assert second.at_s == pytest.approx(1.02004) and second.output_tokens == 0
    assert shared_tokens([first, second]) == 0


def test_mooncakes_equal_ids_are_equal_beginnings(tmp_path: Path):
    asked = read(tmp_path, MOONCAKE)
    assert [one.at_s for one in asked] == [0.0, 1.5, 1.5]
    assert [one.input_tokens for one in asked] == [600, 1100, 512]
    assert shared_tokens(asked) == 600 + 512  # block 7 was 88 tokens long when it came first
    assert len(read(tmp_path, MOONCAKE, limit=2)) == 2


def test_an_agents_request_repeats_its_last_one_as_far_as_recorded(tmp_path: Path):
    asked = read(tmp_path, AGENTIC)
    assert [(one.at_s, one.session, one.input_tokens) for one in asked] == [
        (0.0, "a", 1000),
        (0.0, "b", 700),
        (5.0, "a", 300),
        (9.5, "a", 1500),
    ]
    assert shared_tokens(asked) == 960
    assert {one.session for one in read(tmp_path, AGENTIC, sessions=1)} == {"a"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a,b\n1,2\n",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n",
        "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,-4,2\n",
        '{"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [1]}\n',
        '{"timestamp": 0, "input_length": 600}\n',
        "{\n",
    ],
)
def test_what_is_no_trace_is_refused_with_the_files_name(tmp_path: Path, text: str):
    with pytest.raises(ValueError, match=r"trace\.gz"):
        read(tmp_path, text)


PIECES = st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 400)), min_size=1, max_size=6).map(
    lambda pieces: tuple({key: (key, n) for key, n in pieces}.values())
)
TRACES = st.lists(st.builds(Recorded, st.just(0.0), st.integers(0, 500), PIECES), min_size=1, max_size=6)


@given(TRACES, st.integers(64, 1000), st.floats(0.05, 1))
def test_what_is_fitted_is_within_the_context_and_what_was_cut_is_counted(trace: list[Recorded], context: int, scale: float):
    fitted = fit(trace, context, scale)
    assert all(one.input_tokens + one.output_tokens <= context and one.output_tokens >= 1 for one in fitted.requests)
    whole = fit(trace, None, scale).requests
    shorter = [(a, b) for a, b in zip(fitted.requests, whole, strict=True) if a != b]
    assert len(shorter) <= fitted.clamped_inputs + fitted.clamped_outputs <= 2 * len(shorter)
    assert all(cut(b.pieces, a.input_tokens) == a.pieces for a, b in zip(fitted.requests, whole, strict=True))


@given(TRACES, st.integers(0, 60), st.sampled_from([1.0, 1.3]))
def test_texts_are_as_long_as_recorded_and_begin_alike_where_the_pieces_do(trace: list[Recorded], around: int, each: float):
    measure = Measure(around, each)
    made = [prompt.text.split() for prompt in prompts(trace, measure, "salt")]
    for one, words in zip(trace, made, strict=True):
        wanted = (one.input_tokens - around) / each
        assert abs(len(words) - max(1, wanted)) <= 1
    for one, words in zip(trace, made, strict=True):
        for other, others in zip(trace, made, strict=True):
            alike = next((n for n, (a, b) in enumerate(zip(one.pieces, other.pieces, strict=False)) if a != b), None)
            if alike is None:
                continue
            n = max(0, measure.words(sum(tokens for _, tokens in one.pieces[:alike])))
            assert words[:n] == others[:n]
    assert prompts(trace, measure, "salt") == prompts(trace, measure, "salt")


def test_another_salt_shares_nothing():
    trace = [Recorded(0.0, 1, (("a", 200),))]
    one, other = (prompts(trace, Measure(), salt)[0].text for salt in ("x", "y"))
    assert one.split()[:8] != other.split()[:8]
