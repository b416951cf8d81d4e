"""The definition of done, as data, and its verdicts.

A check is an object with a `type`: json_schema {schema}, json_object, regex {pattern}, non_empty, finish_reason {allowed}.
Everything in it may come from a stranger: patterns and schemas run under a time limit, schemas never fetch anything.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jsonschema
import regex
from jsonschema import Draft202012Validator, validators
from referencing import Registry
from referencing.exceptions import Unresolvable

from ..wire.chat import ChatRequest
from ..wire.errors import BadRequest
from ..wire.fields import schema as bounded_schema

PATTERN_S = 0.25  # for one search
CHECKS_S = 2.0  # for all checks of all choices: a schema of a few lines can branch for years
MAX_PATTERN = 4096  # characters
MAX_EVIDENCE = 300

Check = Mapping[str, Any]
_deadline: ContextVar[float] = ContextVar("check_deadline")  # of the running checks, monotonic


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check says of an answer; `evidence` is why, written for the next model to read."""

    check: str
    passed: bool
    evidence: str = ""
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What is judged."""

    text: str
    finish_reason: str
    has_tool_calls: bool = False


def checks_of(request: ChatRequest) -> tuple[Check, ...]:
    """The request's own checks and those that its response_format implies; () if there are none. Raises BadRequest."""
    implied: list[Check] = []
    if request.response_format.kind == "json_schema":
        implied = [{"type": "json_schema", "schema": request.response_format.schema or {}}]
    elif request.response_format.kind == "json_object":
        implied = [{"type": "json_object"}]
    asked = [*implied, *request.extras.checks]
    for check in asked:
        _validate(check)
    if not asked:
        return ()
    # Whatever else is promised, an answer that was cut off or is empty is not done.
    usual = [{"type": kind} for kind in ("finish_reason", "non_empty") if kind not in {c["type"] for c in asked}]
    return (*usual, *asked)


def _validate(check: Check) -> None:
    kind, at = check["type"], "baseload.checks"
    if kind not in KINDS:
        raise BadRequest(f"There is no check of the type {kind[:40]!r}; known are {', '.join(KINDS)}.", param=at)
    if extra := set(check) - {"type", *FIELDS.get(kind, ())}:
        raise BadRequest(f"The check {kind} has no field {sorted(extra)[0][:40]!r}.", param=at)
    if kind == "json_schema":
        _validate_schema(check.get("schema"))
    if kind == "regex":
        _validate_pattern(check.get("pattern"))
    if kind == "finish_reason" and not isinstance(check.get("allowed", []), list):
        raise BadRequest("The check finish_reason needs a list 'allowed'.", param=at)


def _validate_schema(schema: Any) -> None:
    if not isinstance(schema, dict):
        raise BadRequest("A JSON schema must be an object.", param="response_format")
    bounded_schema(schema, "response_format.json_schema.schema")
    try:
        Draft202012Validator.check_schema(schema)
    except (jsonschema.SchemaError, RecursionError) as error:
        where = "/".join(str(p)[:40] for p in getattr(error, "absolute_path", ()))[:120]
        raise BadRequest(f"The JSON schema is not valid{f' at {where}' if where else ''}.", param="response_format") from error


def _validate_pattern(pattern: Any) -> None:
    if not isinstance(pattern, str) or not 0 < len(pattern) <= MAX_PATTERN:
        raise BadRequest(f"A regex check needs a pattern of 1 to {MAX_PATTERN} characters.", param="baseload.checks")
    try:
        regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        raise BadRequest("The pattern of a regex check is not valid.", param="baseload.checks") from error


def run(checks: Sequence[Check], answer: Answer, until: float | None = None) -> list[Verdict]:
    """Every check's verdict. Never raises for what a check or an answer holds.

    What has not ended by `until` (monotonic seconds; CHECKS_S from now if not given) has failed. Blocks for that long.
    """
    _deadline.set(time.monotonic() + CHECKS_S if until is None else until)
    return [_run(check, answer) for check in checks]


def _run(check: Check, answer: Answer) -> Verdict:
    try:
        evidence = KINDS[check["type"]](check, answer)
    except TimeoutError:
        evidence = "the check took too long"
    except (RecursionError, jsonschema.SchemaError, Unresolvable, ValueError) as error:
        evidence = f"the check could not be run ({type(error).__name__})"
    return Verdict(check["type"], not evidence, evidence[:MAX_EVIDENCE])


# Each returns why the answer fails, or "".


def _non_empty(check: Check, answer: Answer) -> str:
    return "" if answer.text.strip() or answer.has_tool_calls else "the answer is empty"


def _finish_reason(check: Check, answer: Answer) -> str:
    allowed = check.get("allowed") or ["stop", "tool_calls"]
    return "" if answer.finish_reason in allowed else f"the answer ended with {answer.finish_reason!r}: it is not complete"


def _json_object(check: Check, answer: Answer) -> str:
    return _not_an_object(answer.text)


def _not_an_object(text: str) -> str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return "the answer is not valid JSON"
    return "" if isinstance(value, dict) else "the answer is JSON, but not an object"


def _json_schema(check: Check, answer: Answer) -> str:
    try:
        value = json.loads(answer.text)
    except (ValueError, RecursionError):
        return "the answer is not valid JSON"
    error = next(iter(BoundedValidator(check["schema"], registry=Registry()).iter_errors(value)), None)
    if error is None:
        return ""
    where = "".join(f"[{p!r}]" for p in error.absolute_path)
    return f"the JSON does not match the schema at ${where}: {error.message}"


def _regex(check: Check, answer: Answer) -> str:
    return "" if search(check["pattern"], answer.text) else "the answer does not match the required pattern"


def search(pattern: str, text: str) -> bool:
    """Whether `pattern` is found in `text`. Raises TimeoutError for one that takes too long."""
    left = _deadline.get() - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return regex.search(pattern, text, timeout=min(PATTERN_S, left)) is not None


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[jsonschema.ValidationError]:
    if isinstance(instance, str) and not search(pattern, instance):
        yield jsonschema.ValidationError("a string does not match its pattern")


def _pattern_properties(
    validator: Any, patterns: Mapping[str, Any], instance: Any, schema: Any
) -> Iterator[jsonschema.ValidationError]:
    if isinstance(instance, dict):
        for pattern, inner in patterns.items():
            for key, value in instance.items():
                if search(pattern, key):
                    yield from validator.descend(value, inner, path=key, schema_path=pattern)


Keyword = Callable[[Any, Any, Any, Any], Iterator[jsonschema.ValidationError] | None]


def _timed(keyword: Keyword) -> Keyword:
    """The keyword under the deadline; all of a schema's branching goes through its keywords."""

    def run_in_time(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[jsonschema.ValidationError]:
        if time.monotonic() > _deadline.get():
            raise TimeoutError
        yield from keyword(validator, value, instance, schema) or ()

    return run_in_time


# jsonschema searches patterns with `re`, which nothing can stop.
KEYWORDS: dict[str, Keyword] = {
    **Draft202012Validator.VALIDATORS,
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
}
BoundedValidator = validators.extend(Draft202012Validator, {name: _timed(keyword) for name, keyword in KEYWORDS.items()})
KINDS = {
    "json_schema": _json_schema,
    "json_object": _json_object,
    "regex": _regex,
    "non_empty": _non_empty,
    "finish_reason": _finish_reason,
}
FIELDS = {"json_schema": ("schema",), "regex": ("pattern",), "finish_reason": ("allowed",)}
