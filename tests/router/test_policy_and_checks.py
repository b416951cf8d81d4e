"""Gates and definitions of done."""

import time
from dataclasses import replace
from typing import Any

import pytest

from baseload.router.checks import Answer, checks_of, run
from baseload.router.policy import Allowed, Denied, Policy, Rung, judge
from baseload.wire.backend import ModelInfo
from baseload.wire.chat import ChatRequest, Extras, Image, Message, ResponseFormat, Text
from baseload.wire.errors import BadRequest, ContextLengthExceeded, EgressDenied

HOME = Rung("small", ModelInfo("small", 100))
AWAY = Rung("acme/big", ModelInfo("acme/big", 1000, local=False), "acme")
OPEN = Policy(allowed_suppliers=frozenset({"acme"}))
ASK = ChatRequest("auto", (Message("user", (Text("hi"),)),))


@pytest.mark.parametrize(
    ("request_", "policy", "rung", "gate"),
    [
        (ASK, OPEN, HOME, None),
        (ASK, OPEN, AWAY, None),
        (ASK, Policy(air_gap=True), HOME, None),
        (ASK, replace(OPEN, air_gap=True), AWAY, "air_gap"),
        (ASK, Policy(), AWAY, "supplier"),
        (replace(ASK, extras=Extras(allow_suppliers=False)), OPEN, AWAY, "request"),
        (replace(ASK, extras=Extras(allow_suppliers=False)), OPEN, HOME, None),
        (ASK, OPEN, replace(AWAY, not_ready="no key"), "ready"),
        (ChatRequest("auto", prompt="x"), OPEN, AWAY, "capability"),
        (ASK, OPEN, replace(HOME, prompt_tokens=100), "context"),
        (ASK, OPEN, replace(HOME, prompt_tokens=99), None),
        (replace(ASK, messages=(Message("user", (Image("image/png", b""),)),)), OPEN, HOME, "vision"),
    ],
)
def test_gates(request_: ChatRequest, policy: Policy, rung: Rung, gate: str | None):
    verdict = judge(request_, policy, rung)
    assert verdict == Allowed() if gate is None else isinstance(verdict, Denied) and verdict.gate == gate


def test_denials_are_told_in_their_own_words():
    denied = judge(ASK, replace(OPEN, air_gap=True), AWAY)
    assert isinstance(denied, Denied) and denied.error is EgressDenied and "air gap" in denied.reason
    long = judge(ASK, OPEN, replace(HOME, prompt_tokens=500))
    assert isinstance(long, Denied) and long.error is ContextLengthExceeded and "500" in long.reason


def checked(*checks: dict[str, Any], format_: ResponseFormat | None = None) -> Any:
    return checks_of(replace(ASK, extras=Extras(tuple(checks)), response_format=format_ or ResponseFormat()))


def failures(checks: Any, text: str, finish: str = "stop") -> set[str]:
    return {v.check for v in run(checks, Answer(text, finish)) if not v.passed}


SCHEMA = {"type": "object", "required": ["a"], "properties": {"a": {"type": "string", "pattern": "^x+$"}}}


def test_a_request_without_checks_has_none():
    assert checks_of(ASK) == ()


@pytest.mark.parametrize(
    ("text", "finish", "failed"),
    [
        ('{"a": "xx"}', "stop", set()),
        ('{"a": "y"}', "stop", {"json_schema"}),
        ("{}", "stop", {"json_schema"}),
        ("no json", "stop", {"json_schema"}),
        ('{"a": "xx"}', "length", {"finish_reason"}),
        (" ", "stop", {"json_schema", "non_empty"}),
        ("[" * 100_000, "stop", {"json_schema"}),
    ],
)
def test_a_schema_is_checked(text: str, finish: str, failed: set[str]):
    assert failures(checked(format_=ResponseFormat("json_schema", schema=SCHEMA)), text, finish) == failed


def test_json_object_and_regex():
    assert failures(checked(format_=ResponseFormat("json_object")), "[]") == {"json_object"}
    assert failures(checked({"type": "regex", "pattern": "^P"}), "London") == {"regex"}
    assert failures(checked({"type": "regex", "pattern": "^P"}), "Paris") == set()


def test_a_pattern_that_never_ends_costs_its_sender_a_moment():
    begun = time.monotonic()
    evil = [
        {"type": "regex", "pattern": "(a|aa)+$"},
        {"type": "json_schema", "schema": {"type": "string", "pattern": "(a|aa)+$"}},
    ]
    assert "regex" in failures(checked(evil[0]), "a" * 50 + "b")
    assert "json_schema" in failures(checked(evil[1]), '"' + "a" * 50 + 'b"')
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "check",
    [
        {"type": "magic"},
        {"type": "regex"},
        {"type": "regex", "pattern": "("},
        {"type": "regex", "pattern": "x" * 5000},
        {"type": "regex", "pattern": "x", "flags": 1},
        {"type": "json_schema", "schema": []},
        {"type": "json_schema", "schema": {"type": "no such type"}},
        {"type": "json_schema", "schema": {"$ref": "http://127.0.0.1/x"}},
        {"type": "finish_reason", "allowed": "stop"},
    ],
)
def test_a_bad_check_is_refused(check: dict[str, Any]):
    with pytest.raises(BadRequest):
        checked(check)


def test_a_schema_that_refers_to_itself_ends():
    loop = {"$ref": "#"}
    assert "json_schema" in failures(checked({"type": "json_schema", "schema": loop}), "{}")
    missing = {"$ref": "#/$defs/none"}
    assert "json_schema" in failures(checked({"type": "json_schema", "schema": missing}), "{}")
