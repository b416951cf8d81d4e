"""Checks of form: JSON, JSON schemas, patterns, and calls of tools.

Patterns and schemas may come from a stranger: they run under the checks' deadline, and schemas never fetch anything.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jsonschema
import regex
from jsonschema import Draft202012Validator, validators
from referencing import Registry

from ..wire.chat import ToolCall
from .check_types import Answer, Check, time_left

PATTERN_S = 0.25  # for one search

# Each check returns why the answer fails, or "".


def non_empty(check: Check, answer: Answer) -> str:
    """Some text, or a call."""
    return "" if answer.text.strip() or answer.has_tool_calls else "the answer is empty"


def finish_reason(check: Check, answer: Answer) -> str:
    """The model ended by itself."""
    allowed = check.get("allowed") or ["stop", "tool_calls"]
    return "" if answer.finish_reason in allowed else f"the answer ended with {answer.finish_reason!r}: it is not complete"


def json_object(check: Check, answer: Answer) -> str:
    """The answer is a JSON object and nothing else."""
    try:
        value = json.loads(answer.text)
    except (ValueError, RecursionError):
        return "the answer is not valid JSON"
    return "" if isinstance(value, dict) else "the answer is JSON, but not an object"


def json_schema(check: Check, answer: Answer) -> str:
    """The answer is JSON that the schema describes."""
    try:
        value = json.loads(answer.text)
    except (ValueError, RecursionError):
        return "the answer is not valid JSON"
    fault = _mismatch(check["schema"], value)
    return f"the JSON does not match the schema at {fault}" if fault else ""


def pattern(check: Check, answer: Answer) -> str:
    """The pattern is found in the answer."""
    return "" if search(check["pattern"], answer.text) else "the answer does not match the required pattern"


def tool_call(check: Check, answer: Answer) -> str:
    """Every call is of a tool that was offered, with arguments that its schema describes; one at least, if so asked."""
    schemas = {tool.name: tool.parameters for tool in answer.request.tools} if answer.request else {}
    for call in answer.calls:
        if fault := _call_fault(call, schemas):
            return fault
    wanted = check.get("name")
    if (wanted is not None or check.get("required")) and not any(wanted in (None, call.name) for call in answer.calls):
        return f"the answer does not call the tool {wanted}" if wanted else "the answer calls no tool"
    return ""


def _call_fault(call: ToolCall, schemas: Mapping[str, Mapping[str, Any]]) -> str:
    if call.name not in schemas:
        return f"there is no tool {call.name[:60]!r}; there are {', '.join(schemas) or 'none'}"
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        return f"the arguments of {call.name} are not valid JSON"
    if not isinstance(arguments, dict):
        return f"the arguments of {call.name} are not a JSON object"
    fault = _mismatch(schemas[call.name], arguments)
    return f"the arguments of {call.name} do not match its schema at {fault}" if fault else ""


def _mismatch(schema: Mapping[str, Any], value: Any) -> str:
    """Where and why `value` is not what the schema describes, or ""."""
    error = next(iter(BoundedValidator(schema, registry=Registry()).iter_errors(value)), None)
    if error is None:
        return ""
    return f"${''.join(f'[{p!r}]' for p in error.absolute_path)}: {error.message}"


def search(pattern: str, text: str) -> bool:
    """Whether `pattern` is found in `text`. Raises TimeoutError for one that takes too long."""
    return regex.search(pattern, text, timeout=min(PATTERN_S, time_left())) is not None


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
        time_left()
        yield from keyword(validator, value, instance, schema) or ()

    return run_in_time


# jsonschema searches patterns with `re`, which nothing can stop.
KEYWORDS: dict[str, Keyword] = {
    **Draft202012Validator.VALIDATORS,
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
}
BoundedValidator = validators.extend(Draft202012Validator, {name: _timed(keyword) for name, keyword in KEYWORDS.items()})
