"""Whatever a check and an answer hold: it is refused or judged, in time, and nothing is raised."""

import math
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.router import check_text
from baseload.router.check_fields import FIELDS
from baseload.router.checks import Answer, Permissions, Verdict, checks_of, run
from baseload.wire.chat import ChatRequest, Extras, Message, Text, ToolCall, ToolSpec
from baseload.wire.errors import BadRequest

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
SCHEMAS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["object", "array", "string", "number", "null"]) | JSON,
        "pattern": st.text(max_size=12),
        "properties": st.dictionaries(st.text(max_size=4), st.fixed_dictionaries({"minimum": SCALARS}), max_size=3),
        "enum": st.lists(JSON, max_size=3),
        "$ref": st.sampled_from(["#", "#/$defs/x", "#x", "http://x/y"]),
        "multipleOf": SCALARS,
        "items": JSON,
    },
)
QUICK = sorted(set(FIELDS) - {"python", "command"})
NAMES = sorted({name for fields in FIELDS.values() for name in fields})
SENSIBLE = st.text(max_size=12) | st.lists(st.text(max_size=6), max_size=3) | st.floats(0, 9) | st.booleans() | SCHEMAS
ANSWERS = st.text(max_size=200) | st.text('0123456789.,-+/%$e \\{}boxedfrac#"“”«»[]…', max_size=200)


@st.composite
def checks(draw: st.DrawFn) -> dict[str, Any]:
    """A check of any kind with fields of any kind: some known, some right, most not."""
    kind = draw(st.sampled_from(QUICK))
    names = st.sampled_from([*FIELDS[kind], *NAMES[:1]])
    return {"type": kind} | draw(st.dictionaries(names, SENSIBLE | JSON, max_size=3))


def in_time(found: list[Verdict], begun: float) -> None:
    assert time.monotonic() - begun < 10
    assert all(isinstance(v, Verdict) and v.passed is not (bool(v.evidence) and not v.pending) for v in found)
    assert all(len(v.evidence) <= 300 for v in found)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(checks(), min_size=1, max_size=4),
    ANSWERS,
    st.lists(st.tuples(st.text(max_size=6), st.text(max_size=20)), max_size=2),
)
def test_any_check_on_any_answer(some: list[dict[str, Any]], text: str, calls: list[tuple[str, str]]):
    request = ChatRequest("auto", (Message("user", (Text(text[:50]),)),), tools=(ToolSpec("t", parameters={"type": 3}),))
    answer = Answer(text, "stop", tuple(ToolCall("c", *call) for call in calls), request)
    begun = time.monotonic()
    found = run(some, answer)  # unvalidated, as no client's ever is
    assert [v.check for v in found] == [c["type"] for c in some]
    in_time(found, begun)
    try:
        sound = checks_of(replace(request, extras=Extras(tuple(some))))
    except BadRequest:
        return
    begun = time.monotonic()
    found = run(sound, answer)
    in_time(found, begun)
    assert not [v for v in found if "could not be run (T" in v.evidence or "could not be run (K" in v.evidence], (
        "TypeError, KeyError"
    )


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from([*NAMES, "type"]), SENSIBLE | JSON, max_size=4), st.sampled_from(sorted(FIELDS)))
def test_any_object_is_taken_or_refused(fields: dict[str, Any], kind: str):
    for check in (fields, fields | {"type": kind}):
        try:
            taken = checks_of(ChatRequest("auto", extras=Extras((check,))), Permissions(True))
        except BadRequest:
            continue
        assert taken[-1] == check


@given(
    st.integers(-(10**15), 10**15),
    st.sampled_from(["{}", "It is {}.", "{}%", "${} in all", "#### {}", "\\boxed{{{}}} not 7", "3, 4, {}"]),
)
def test_a_number_is_found_however_it_is_written(value: int, around: str):
    for written in (f"{value}", f"{value:,}", f"{value}.0", f"{value:.20e}"):
        assert any(math.isclose(x, value) for x in check_text.last_number(around.format(written))), written


@given(st.text(max_size=60))
def test_what_is_compared_is_the_same_however_often_it_is_made_plain(text: str):
    assert check_text.plain(check_text.plain(text)) == check_text.plain(text)
    if any(c.isalnum() for c in text):
        assert run([{"type": "equals", "value": text}], Answer(f" **{text}**. ", "stop"))[0].passed


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 50_000,
        "\\frac{" * 50_000,
        '"' + " " * 200_000 + 'a b c d"',
        "[1" + " " * 200_000 + "]",
        "[1," * 50_000,
        "1," * 100_000,
        "1/" * 100_000,
        "1e" * 100_000,
        "9" * 200_000,
        "“a b c d " * 20_000,
        "“a b c d” " * 20_000,
        "```python\n" * 20_000,
        "document " * 20_000 + " " * 100_000,
        "#### " * 40_000,
        "ﷺ" * 100_000,
    ],
)
@pytest.mark.parametrize(
    "check", [{"type": "number", "value": 7}, {"type": "citation"}, {"type": "citation", "style": "numbers"}]
)
def test_a_long_answer_costs_a_moment(check: dict[str, Any], text: str):
    request = ChatRequest("auto", (Message("user", (Text(text),)),))
    begun = time.monotonic()
    in_time(run([check], Answer(text, "stop", (), request)), begun)
