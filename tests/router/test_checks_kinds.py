"""What each kind of check lets pass and what it doesn't; what it says of a field that is wrong."""

import json
from dataclasses import replace
from typing import Any

import pytest

from baseload.router import RequestContext
from baseload.router.checks import Answer, Permissions, Verdict, calls_of, checks_of, run
from baseload.wire.chat import (
    ChatRequest,
    Event,
    Extras,
    Failure,
    Finish,
    Message,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    ToolSpec,
)
from baseload.wire.errors import BadRequest

SCHEMA = {
    "type": "object",
    "required": ["city"],
    "properties": {"city": {"type": "string", "pattern": "^[A-Z]"}, "days": {"type": "integer", "minimum": 1}},
    "additionalProperties": False,
}
GIVEN = (
    Message("system", (Text('<document index="4">The harbour of Genoa was dredged in 1907.</document>'),)),
    Message("user", (Text("[1] Ships wait outside until\nthe pilot boards. [2] The pilot’s fee is 1,200 lire."),)),
    Message("assistant", (Text("They say the harbour master was a fool."),)),
    Message("tool", (ToolResult("c1", (Text("Source 3: tugs are paid by the hour, and at night double."),)),)),
)
REQUEST = ChatRequest("auto", GIVEN, tools=(ToolSpec("weather", parameters=SCHEMA), ToolSpec("now")))


def verdict(check: dict[str, Any], text: str = "", *calls: ToolCall, request: ChatRequest = REQUEST) -> Verdict:
    """The check's own verdict, as a request with it would get."""
    checks = checks_of(replace(request, extras=Extras((check,))), Permissions(True, frozenset({"python3", "sh"})))
    verdicts = run(checks, Answer(text, "tool_calls" if calls else "stop", calls, request))
    return next(v for v in verdicts if v.check == check["type"])


def call(name: str, arguments: Any) -> ToolCall:
    return ToolCall("c", name, arguments if isinstance(arguments, str) else json.dumps(arguments))


# --------------------------------------------------------------------------------------------------------------- calls


@pytest.mark.parametrize(
    ("check", "calls", "fault"),
    [
        ({}, [], ""),
        ({}, [call("weather", {"city": "Rome"})], ""),
        ({}, [call("now", {}), call("weather", {"city": "Rome", "days": 2})], ""),
        ({"required": True}, [call("now", {})], ""),
        ({"required": True}, [], "calls no tool"),
        ({"name": "weather"}, [], "does not call the tool weather"),
        ({"name": "weather"}, [call("now", {})], "does not call the tool weather"),
        ({"name": "weather"}, [call("now", {}), call("weather", {"city": "Rome"})], ""),
        ({}, [call("wether", {"city": "Rome"})], "no tool 'wether'; there are weather, now"),
        ({}, [call("weather", {"city": "Rome"}), call("weather", {"city": "rome"})], "at $['city']"),
        ({}, [call("weather", {"city": "Rome", "days": 0})], "at $['days']"),
        ({}, [call("weather", {})], "'city' is a required property"),
        ({}, [call("weather", {"city": "Rome", "x": 1})], "Additional properties"),
        ({}, [call("weather", "")], "not valid JSON"),
        ({}, [call("weather", '{"city": "Ro')], "not valid JSON"),
        ({}, [call("weather", '["Rome"]')], "not a JSON object"),
        ({}, [call("weather", "[" * 100_000)], "not valid JSON"),
        ({}, [call("", "{}")], "no tool ''"),
    ],
)
def test_calls(check: dict[str, Any], calls: list[ToolCall], fault: str):
    found = verdict({"type": "tool_call"} | check, "", *calls)
    assert found.passed is not bool(fault) and fault in found.evidence, found


@pytest.mark.timeout(30)
def test_a_tools_schema_that_branches_for_years_is_stopped():
    levels = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)}
    schema = {"properties": {"x": {"$ref": "#/$defs/d0"}}, "$defs": levels | {"d40": {"type": "string"}}}
    request = replace(REQUEST, tools=(ToolSpec("deep", parameters=schema),))
    found = verdict({"type": "tool_call"}, "", call("deep", {"x": 1}), request=request)
    assert not found.passed and "too long" in found.evidence


def test_calls_come_together_from_their_pieces():
    pieces = [
        ToolCallDelta(1, "b", "now"),
        ToolCallDelta(0, "a", "weather", '{"ci'),
        ToolCallDelta(1, arguments="{}"),
        ToolCallDelta(0, arguments='ty": "Rome"}'),
    ]
    assert calls_of(pieces) == (ToolCall("a", "weather", '{"city": "Rome"}'), ToolCall("b", "now", "{}"))
    assert Answer("", "tool_calls", calls_of(pieces)).has_tool_calls and not Answer("", "stop").has_tool_calls


# --------------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("check", "text", "passes"),
    [
        ({"values": ["Rome", "Genoa"]}, "From GENOA to\n rome", True),
        ({"values": ["Rome", "Genoa"]}, "Rome alone", False),
        ({"values": ["Rome", "Genoa"], "any": True}, "Rome alone", True),
        ({"values": ["Rome", "Genoa"], "any": True}, "neither", False),
        ({"values": ["the  eternal\ncity"]}, "It is The Eternal City.", True),
        ({"values": ["ﬁne"]}, "a fine day", True),
        ({"values": ["straße"]}, "STRASSE", True),
        ({"values": ["1,200"]}, "1200", False),
    ],
)
def test_contains(check: dict[str, Any], text: str, passes: bool):
    assert verdict({"type": "contains"} | check, text).passed is passes


@pytest.mark.parametrize(
    ("value", "text", "passes"),
    [
        ("Paris", "paris.", True),
        ("Paris", ' **"Paris"**! ', True),
        ("Paris", "(Paris)", True),
        ("Paris", "It is Paris", False),
        ("the  answer", "The\nAnswer", True),
        ("the answer", "answer", False),
        (["yes", "true"], "True", True),
        (["yes", "true"], "no", False),
        ("3", "-3", False),
        ("-3", "-3", True),
        ("5", ".5", False),
        ("3%", "3", False),
        ("c#", "C", False),
        ("c++", "C++", True),
        ("?", "!", False),
        ("?", "?", True),
        ("Ａ", "a", True),
        ("", "x", False),
    ],
)
def test_equals(value: Any, text: str, passes: bool):
    assert verdict({"type": "equals", "value": value}, text).passed is passes


@pytest.mark.parametrize(
    ("value", "text", "passes"),
    [
        (1234.5, "It is 1,234.5.", True),
        (1234.5, "It is 1234.50 euros", True),
        (-3, "so x = -3", True),
        (-3, "x=−3", True),
        (3, "5-3", True),
        (3, "on 2020-01-03", True),
        ("2/3", "2/3", True),
        (0.5, "1/2", True),
        (0.5, "½", True),
        (0.5, "\\frac{1}{2}", True),
        (2 / 3, "0.667", False),
        (1e5, "1e5", True),
        (100000, "about 1E+5 of them", True),
        (18, "$18", True),
        (-18, "-$18.00", True),
        (18, "He pays $20 and gets $2 back: #### 18", True),
        (18, "#### 18\n(that is 3 less than 21)", True),
        (18, "\\boxed{18} of 40", True),
        (18, "\\boxed{\\$18} of 40", True),
        (0.75, "\\boxed{\\frac{3}{4}}", True),
        (-0.75, "\\boxed{-\\frac{3}{4}}", True),
        (1200, "\\boxed{1{,}200}", True),
        (1200, "\\boxed{1\\,200}", True),
        (50, "50%", True),
        (0.5, "50 %", True),
        (5, "50%", False),
        (42, "17 and 42.", True),
        (17, "17 and 42.", False),
        (42, "1/0 then 42, then 3/0", True),
        (42, "no number", False),
        (42, "", False),
        (0, "0.0", True),
        (0, "-0", True),
        (3, "1,2,3", True),
        (123, "1,2,3", False),
        (42, "the 42nd", True),
        (1, "inf nan infinity", False),
        (1, "9" * 5000, False),
        (1, "1e9999", False),
    ],
)
def test_number(value: Any, text: str, passes: bool):
    found = verdict({"type": "number", "value": value}, text)
    assert found.passed is passes, found


@pytest.mark.parametrize(("text", "passes"), [("0.66", True), ("0.677", True), ("0.7", False), ("-0.667", False)])
def test_number_within(text: str, passes: bool):
    assert verdict({"type": "number", "value": "2/3", "tolerance": 0.011}, text).passed is passes


# ----------------------------------------------------------------------------------------------------------- citations


@pytest.mark.parametrize(
    ("check", "text", "fault"),
    [
        ({}, 'As it says, "ships wait outside until the pilot boards."', ""),
        ({}, "“Ships WAIT outside until   the pilot boards”", ""),
        ({}, "«the harbour of Genoa was dredged»", ""),
        ({}, '"tugs are paid by the hour … at night double"', ""),
        ({}, '"tugs are paid by the hour [...] at noon double"', "quotes what was not said"),
        ({}, '"ships wait outside until the tug boards"', "quotes what was not said"),
        ({}, '"they say the harbour master was a fool"', "quotes what was not said"),
        ({}, 'the "pilot" and the "harbour master"', "quotes 0 passages"),
        ({}, "nothing quoted", "quotes 0 passages"),
        ({"min": 0}, "nothing quoted", ""),
        ({"min": 2}, '"tugs are paid by the hour"', "quotes 1 passages"),
        ({"style": "numbers"}, "They wait [1], and pay [2, 3].", ""),
        ({"style": "numbers"}, "Dredged in 1907 [4].", ""),
        ({"style": "numbers"}, "All of it [1-4].", ""),
        ({"style": "numbers"}, "They wait [5].", "cites [5]"),
        ({"style": "numbers"}, "They wait [1-9].", "cites [5]"),
        ({"style": "numbers"}, "They wait.", "cites 0 documents"),
        ({"style": "numbers", "min": 3}, "[1] [1] [2]", "cites 2 documents"),
    ],
)
def test_citations(check: dict[str, Any], text: str, fault: str):
    found = verdict({"type": "citation"} | check, text)
    assert found.passed is not bool(fault) and fault in found.evidence, found


async def test_the_next_try_can_not_quote_what_the_first_was_reproached_with(house: Any):
    """The evidence quotes the answer that failed; the checks still look at what the client sent alone."""
    text = '"ships wait outside until the tug boards"'
    said: list[Event] = [TextDelta(text, 0, 1), Finish("stop")]
    router, home, _ = house([said, said], repairs=1)
    handling = await router.handle(replace(REQUEST, extras=Extras(({"type": "citation"},))), RequestContext("req_1"))
    assert [type(e) for e in [e async for e in handling.events]] == [Failure]
    assert text.strip('"') in home.asked[1].messages[-1].text


async def test_a_bad_call_is_made_again_with_what_is_wrong(house: Any):
    bad: list[Event] = [
        ToolCallDelta(0, "c", "weather", '{"city": '),
        ToolCallDelta(0, arguments='"rome"}'),
        Finish("tool_calls"),
    ]
    good: list[Event] = [ToolCallDelta(0, "c", "weather", '{"city": "Rome"}'), Finish("tool_calls")]
    router, home, _ = house([bad, good], repairs=1)
    handling = await router.handle(replace(REQUEST, extras=Extras(({"type": "tool_call"},))), RequestContext("req_1"))
    assert [e async for e in handling.events] == good
    assert "weather do not match its schema at $['city']" in home.asked[1].messages[-1].text


# ---------------------------------------------------------------------------------------------------- people and judges


def test_what_somebody_will_look_at_has_passed_until_then():
    found = verdict({"type": "human"}, "x")
    assert found.passed and found.pending and found.cost_usd == 0


def test_a_judge_is_asked_where_there_is_one():
    check = {"type": "judge", "rubric": "polite", "pass_score": 0.5}
    assert verdict(check, "x").evidence == "no judge is at hand" and not verdict(check, "x").passed
    asked: list[tuple[Any, Answer]] = []

    def judges(check: Any, answer: Answer) -> Verdict:
        asked.append((check, answer))
        return Verdict("judge", True, "polite enough", 0.8, 0.002)

    answer = Answer("x", "stop")
    assert run([check, {"type": "non_empty"}], answer, judges=judges)[0] == Verdict("judge", True, "polite enough", 0.8, 0.002)
    assert asked == [(check, answer)]


def test_a_judge_that_breaks_fails_its_own_check_only():
    def broken(check: Any, answer: Answer) -> Verdict:
        raise OSError("gone")

    first, second = run([{"type": "judge", "rubric": "r"}, {"type": "non_empty"}], Answer("x", "stop"), judges=broken)
    assert not first.passed and "OSError" in first.evidence and second.passed


# -------------------------------------------------------------------------------------------------------- wrong fields


@pytest.mark.parametrize(
    ("check", "said"),
    [
        ({"type": "tool_call", "name": "nobody"}, "'nobody'"),
        ({"type": "tool_call", "required": 1}, "'required'"),
        ({"type": "contains"}, "'values'"),
        ({"type": "contains", "values": []}, "'values'"),
        ({"type": "contains", "values": [""]}, "'values'"),
        ({"type": "contains", "values": ["x"] * 65}, "'values'"),
        ({"type": "contains", "values": "x"}, "'values'"),
        ({"type": "equals", "value": 3}, "'value'"),
        ({"type": "number", "value": "many"}, "'value'"),
        ({"type": "number", "value": True}, "'value'"),
        ({"type": "number", "value": float("nan")}, "'value'"),
        ({"type": "number", "value": 10**400}, "'value'"),
        ({"type": "number", "value": 1, "tolerance": -1}, "'tolerance'"),
        ({"type": "python", "tests": 1}, "'tests'"),
        ({"type": "python", "timeout_s": 31}, "'timeout_s'"),
        ({"type": "python", "timeout_s": 0}, "'timeout_s'"),
        ({"type": "command"}, "'argv'"),
        ({"type": "command", "argv": []}, "'argv'"),
        ({"type": "command", "argv": ["sh", "a\0b"]}, "'argv'"),
        ({"type": "command", "argv": "sh"}, "'argv'"),
        ({"type": "command", "argv": ["rm"]}, "[router] commands"),
        ({"type": "command", "argv": ["/bin/sh"]}, "[router] commands"),
        ({"type": "citation", "min": 1.5}, "'min'"),
        ({"type": "citation", "style": "apa"}, "'style'"),
        ({"type": "citation", "style": []}, "'style'"),
        ({"type": "human", "who": "me"}, "'who'"),
        ({"type": "judge"}, "'rubric'"),
        ({"type": "judge", "rubric": "r", "model": ""}, "'model'"),
        ({"type": "judge", "rubric": "r", "pass_score": 2}, "'pass_score'"),
        ({"type": "magic"}, "known are json_schema"),
    ],
)
def test_a_wrong_field_is_named(check: dict[str, Any], said: str):
    with pytest.raises(BadRequest) as refused:
        verdict(check)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("check", "setting"),
    [({"type": "python"}, "[router] code_checks = true"), ({"type": "command", "argv": ["sh"]}, "[router] commands = [...]")],
)
def test_what_runs_a_program_is_off_until_the_owner_allows_it(check: dict[str, Any], setting: str):
    with pytest.raises(BadRequest) as refused:
        checks_of(replace(REQUEST, extras=Extras((check,))))
    assert setting in str(refused.value)


def test_there_are_sixteen_checks_at_most():
    checks_of(replace(REQUEST, extras=Extras(({"type": "human"},) * 16)))
    with pytest.raises(BadRequest):
        checks_of(replace(REQUEST, extras=Extras(({"type": "human"},) * 17)))
