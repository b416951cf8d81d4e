"""What each kind of check may hold. A field that is wrong is named to whoever wrote it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jsonschema
import regex
from jsonschema import Draft202012Validator

from ..wire.chat import ChatRequest
from ..wire.errors import BadRequest
from ..wire.fields import schema as bounded_schema
from .check_code import MAX_TIMEOUT_S
from .check_text import last_number
from .check_types import Check
from .sandbox import Permissions

MAX_PATTERN = 4096  # characters
MAX_VALUES, MAX_VALUE = 64, 4096  # of contains and equals; characters
MAX_PROGRAM = 65_536  # characters of tests
MAX_RUBRIC = 8192
AT = "baseload.checks"


def validate(check: Check, request: ChatRequest, permissions: Permissions) -> None:
    """Raises BadRequest for a check that is not sound, or not permitted here."""
    kind = check.get("type")
    if not isinstance(kind, str) or kind not in FIELDS:
        raise BadRequest(f"There is no check of the type {str(kind)[:40]!r}; known are {', '.join(FIELDS)}.", param=AT)
    fields = FIELDS[kind]
    if extra := set(check) - {"type", *fields}:
        raise BadRequest(f"The check {kind} has no field {sorted(extra)[0][:40]!r}.", param=AT)
    for name, (rule, needed, described) in fields.items():
        if name not in check:
            if needed:
                raise BadRequest(f"The check {kind} needs {described} {name!r}.", param=AT)
        elif not rule(check[name]):
            raise BadRequest(f"The field {name!r} of the check {kind} must be {described}.", param=AT)
    if kind == "json_schema":
        _validate_schema(check["schema"])
    if kind == "tool_call" and (name := check.get("name")) is not None and name not in {tool.name for tool in request.tools}:
        raise BadRequest(f"The check tool_call names {name[:60]!r}, which is not among the request's tools.", param=AT)
    if kind == "python" and not permissions.code:
        raise BadRequest(
            "Checks that run code are off here; the server's owner allows them: [router] code_checks = true.", param=AT
        )
    if kind == "command" and check["argv"][0] not in permissions.commands:
        name = check["argv"][0][:60]
        raise BadRequest(
            f"The command {name!r} may not run here; the server's owner allows it: [router] commands = [...].", param=AT
        )


def _validate_schema(schema: Any) -> None:
    bounded_schema(schema, "response_format.json_schema.schema")
    try:
        Draft202012Validator.check_schema(schema)
    except (jsonschema.SchemaError, RecursionError) as error:
        where = "/".join(str(p)[:40] for p in getattr(error, "absolute_path", ()))[:120]
        raise BadRequest(f"The JSON schema is not valid{f' at {where}' if where else ''}.", param="response_format") from error


def _text(most: int, least: int = 0) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and least <= len(value) <= most


def _texts(most: int, length: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and 0 < len(value) <= most and all(map(_text(length, 1), value))


def _number(least: float, most: float) -> Callable[[Any], bool]:
    return lambda value: _is_number(value) and least <= value <= most


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300 and math.isfinite(value)


def _is_pattern(value: Any) -> bool:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_PATTERN:
        return False
    try:
        regex.compile(value)
    except (regex.error, RecursionError, OverflowError, ValueError):
        return False
    return True


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_command(value: Any) -> bool:
    return _texts(32, MAX_VALUE)(value) and not any("\0" in word for word in value)


Rule = tuple[Callable[[Any], bool], bool, str]  # whether a value is right; whether there must be one; what is right
VALUES: Rule = (_texts(MAX_VALUES, MAX_VALUE), True, f"a list of 1 to {MAX_VALUES} strings of 1 to {MAX_VALUE} characters")
TIMEOUT: Rule = (_number(0.1, MAX_TIMEOUT_S), False, f"a number of seconds from 0.1 to {MAX_TIMEOUT_S:g}")
FIELDS: dict[str, Mapping[str, Rule]] = {
    "json_schema": {"schema": (lambda value: isinstance(value, dict), True, "a JSON schema, an object,")},
    "json_object": {},
    "regex": {"pattern": (_is_pattern, True, f"a valid regular expression of 1 to {MAX_PATTERN} characters")},
    "non_empty": {},
    "finish_reason": {"allowed": (_texts(8, 40), False, "a list of reasons")},
    "tool_call": {
        "name": (_text(128, 1), False, "a tool's name"),
        "required": (_is_flag, False, "true or false"),
    },
    "contains": {"values": VALUES, "any": (_is_flag, False, "true or false")},
    "equals": {"value": (lambda value: _text(MAX_PROGRAM)(value) or VALUES[0](value), True, "a string or a list of strings")},
    "number": {
        "value": (lambda value: _is_number(value) or (_text(100)(value) and bool(last_number(value))), True, "a number"),
        "tolerance": (_number(0, 1e300), False, "a number of 0 or more"),
    },
    "python": {"tests": (_text(MAX_PROGRAM), False, f"a string of at most {MAX_PROGRAM} characters"), "timeout_s": TIMEOUT},
    "command": {"argv": (_is_command, True, "a list of 1 to 32 strings"), "timeout_s": TIMEOUT},
    "citation": {
        "min": (lambda value: isinstance(value, int) and _number(0, 64)(value), False, "a whole number from 0 to 64"),
        "style": (lambda value: value in ("quotes", "numbers"), False, "quotes or numbers"),
    },
    "human": {},
    "judge": {
        "rubric": (_text(MAX_RUBRIC, 1), True, f"a string of 1 to {MAX_RUBRIC} characters"),
        "model": (_text(256, 1), False, "a model's name"),
        "pass_score": (_number(0, 1), False, "a number from 0 to 1"),
    },
}
