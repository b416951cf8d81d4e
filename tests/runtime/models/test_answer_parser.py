"""An answer's parts told apart, in whatever pieces it comes."""

import json
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.runtime.models.answer_parser import THOUGHTS, AnswerParser, thought_marks
from baseload.runtime.models.tool_dialects import Dialect, dialect_of
from baseload.runtime.models.tool_dialects.gemma import GEMMA
from baseload.runtime.models.tool_dialects.hermes import HERMES
from baseload.runtime.models.tool_dialects.llama3 import LLAMA3
from baseload.runtime.models.tool_dialects.mistral import MISTRAL
from baseload.runtime.models.tool_dialects.smollm import SMOLLM
from baseload.wire.chat import ReasoningDelta, TextDelta, ToolCallDelta

NAMES = frozenset({"get_weather", "add", "final.answer"})
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text('ab"\\{}[]<>:,é\n 1', max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('xyz"', max_size=3), inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.sampled_from(["city", "a", "b"]), VALUES, max_size=3)
CALLS = st.lists(st.tuples(st.sampled_from(sorted(NAMES)), ARGUMENTS), min_size=1, max_size=3)


def read(
    text: str, cuts: Sequence[int], dialect: Dialect | None, marks: tuple[str, str] | None = None, in_thought: bool = False
) -> tuple[str, str, list[tuple[str, str]]]:
    """(text, reasoning, calls) of an answer that comes in pieces."""
    parser = AnswerParser(0, dialect, NAMES, marks, in_thought)
    bounds = [0, *sorted(c % (len(text) + 1) for c in cuts), len(text)]
    deltas = []
    for start, end in pairwise(bounds):
        deltas += parser.feed(text[start:end], 1, (), is_last=False)
    deltas += parser.feed("", 1, (), is_last=True)
    calls: list[tuple[str, str]] = []
    for delta in deltas:
        if isinstance(delta, ToolCallDelta) and delta.name:
            assert delta.id and delta.call == len(calls)
            calls.append((delta.name, ""))
        elif isinstance(delta, ToolCallDelta):
            calls[delta.call] = (calls[delta.call][0], calls[delta.call][1] + delta.arguments)
    said = "".join(d.text for d in deltas if isinstance(d, TextDelta))
    assert parser.has_called == bool(calls)
    return said, "".join(d.text for d in deltas if isinstance(d, ReasoningDelta)), calls


def written(dialect: Dialect, calls: Sequence[tuple[str, dict]]) -> str:
    """As a model of that dialect writes them."""
    objects = [json.dumps({"name": name, "arguments": arguments}) for name, arguments in calls]
    if dialect is HERMES:
        return "\n".join(f"<tool_call>\n{o}\n</tool_call>" for o in objects)
    if dialect is SMOLLM:
        return f"<tool_call>[{', '.join(objects)}]</tool_call>"
    if dialect is MISTRAL:
        return f"[TOOL_CALLS] [{', '.join(objects)}]"
    return "; ".join(objects).replace('"arguments": ', '"parameters": ')


@pytest.mark.parametrize("dialect", [HERMES, SMOLLM, MISTRAL, LLAMA3], ids=lambda d: d.name)
@given(calls=CALLS, cuts=st.lists(st.integers(0, 500), max_size=12), before=st.sampled_from(["", "I will look. "]))
def test_calls_are_read_in_any_pieces(dialect, calls, cuts, before):
    before = "" if dialect is LLAMA3 else before
    said, _, found = read(before + written(dialect, calls), cuts, dialect)
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls
    assert said.strip() == before.strip()


@given(st.text('ab<tool_call>[]{}/"\\: \nthink', max_size=60), st.lists(st.integers(0, 99), max_size=8))
def test_text_that_calls_nothing_comes_through_whole(text, cuts):
    said, _, calls = read(text, cuts, HERMES)
    assert calls == []
    assert said.replace(" ", "").replace("\n", "") == text.replace(" ", "").replace("\n", "")


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>',
        "<tool_call>\nnot json\n</tool_call>",
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>\n{"name": 3',
    ],
)
def test_a_malformed_call_is_text(text):
    said, _, calls = read(text, range(0, 60, 7), HERMES)
    assert calls == [] and said == text


def test_arguments_are_streamed():
    parser = AnswerParser(0, HERMES, NAMES, None, False)
    deltas = parser.feed('<tool_call>{"name": "add", "arguments": {"a": 1', 1, (), is_last=False)
    assert [(d.name, d.arguments) for d in deltas if isinstance(d, ToolCallDelta)] == [("add", ""), (None, '{"a": 1')]


def test_arguments_before_their_name():
    _, _, calls = read('<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call>', range(60), HERMES)
    assert calls == [("add", '{"a": 1}')]


@given(st.lists(st.integers(0, 99), max_size=8))
def test_gemmas_calls(cuts):
    text = "<start_function_call>call:get_weather{city:<escape>Rio {a:1}<escape>,days:3,more:[1,{x:true}]}<end_function_call>"
    said, _, calls = read(text, cuts, GEMMA)
    assert said == "" and [(n, json.loads(a)) for n, a in calls] == [
        ("get_weather", {"city": "Rio {a:1}", "days": 3, "more": [1, {"x": True}]})
    ]


@pytest.mark.parametrize("marks", THOUGHTS)
@given(
    thought=st.text("ab <", min_size=1, max_size=9),
    answer=st.text("cd <", min_size=1, max_size=9),
    begun=st.booleans(),
    cuts=st.lists(st.integers(0, 99), max_size=8),
)
def test_reasoning_is_told_from_the_answer(marks, thought, answer, begun, cuts):
    text = ("" if begun else marks[0]) + thought + marks[1] + "\n\n" + answer
    said, reasoned, _ = read(text, cuts, None, marks, in_thought=begun)
    assert reasoned.strip() == thought.strip() and said == answer.lstrip()


def test_reasoning_then_a_call():
    text = '<think>hm</think>\n<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>'
    assert read(text, range(len(text)), HERMES, THOUGHTS[0]) == ("", "hm", [("add", '{"a": 2}')])


def test_dialects_are_known_by_their_templates():
    assert dialect_of("{%- if tools %}<tool_call>{%- endif %}") is HERMES
    assert dialect_of("[AVAILABLE_TOOLS]{{ tools }}[/AVAILABLE_TOOLS] [TOOL_CALLS]") is MISTRAL
    assert dialect_of("<|python_tag|>") is LLAMA3
    assert dialect_of("{{ messages }}") is SMOLLM
    assert thought_marks("{{ content.split('</think>') }}<think>") == ("<think>", "</think>")
