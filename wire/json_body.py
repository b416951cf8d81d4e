"""JSON as it comes from strangers: strict, and bounded before it is parsed."""

import math
import re
from typing import Any

import orjson

from .errors import BadRequest

MAX_DEPTH = 128
INT_RANGE = (-(2**63), 2**64 - 1)
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.S)
_BRACKETS = re.compile(rb"[\[\]{}]")


def loads(data: bytes) -> Any:
    """The value of a JSON text in UTF-8. Raises BadRequest for anything else: NaN, Infinity and numbers that overflow, ints
    beyond 64 bits, lone surrogates, a byte order mark, nesting deeper than 128."""
    if data.startswith(b"\xef\xbb\xbf"):
        raise BadRequest("The body starts with a byte order mark; send plain UTF-8 JSON.", code="invalid_json")
    _check_depth(data)
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not valid JSON: {_reason(error)}.", code="invalid_json") from error
    _check_numbers(value)
    return value


def _check_depth(data: bytes) -> None:
    """Count brackets outside strings, before the parser recurses into them."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for bracket in _BRACKETS.finditer(_STRINGS.sub(b"", data)):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > MAX_DEPTH:
            raise BadRequest(f"The body is nested deeper than {MAX_DEPTH} levels.", code="invalid_json")


def _check_numbers(value: Any) -> None:
    """orjson turns a long integer into a float and 1e400 into an error; what is left to refuse is an infinite float."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            todo.extend(item.values())
        elif isinstance(item, list):
            todo.extend(item)
        elif isinstance(item, float) and math.isinf(item):
            raise BadRequest("The body holds a number that is out of range.", code="invalid_json")


def _reason(error: orjson.JSONDecodeError) -> str:
    return f"{error.msg.split(':')[0][:80]} (line {error.lineno}, column {error.colno})"
