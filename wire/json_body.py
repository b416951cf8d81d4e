"""JSON as it comes from strangers: strict and bounded."""

from typing import Any

import orjson

from .errors import BadRequest

MAX_DEPTH = 128


def loads(data: bytes) -> Any:
    """The value of a JSON text in UTF-8. Raises BadRequest for anything else: NaN, Infinity and numbers that overflow, lone
    surrogates, a byte order mark, nesting deeper than 128. An integer beyond 64 bits becomes a float, and so no integer."""
    if data.startswith(b"\xef\xbb\xbf"):
        raise BadRequest("The body starts with a byte order mark; send plain UTF-8 JSON.", code="invalid_json")
    try:
        value = orjson.loads(data)  # which itself ends at a depth of 1024, whatever the text
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not valid JSON: {_reason(error)}.", code="invalid_json") from error
    # Looked for in the value, not in the text: telling a bracket from one in a string took quadratic time on hostile text.
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _deeper(value, MAX_DEPTH):
        raise BadRequest(f"The body is nested deeper than {MAX_DEPTH} levels.", code="invalid_json")
    return value


def _deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested deeper than `levels`."""
    level = [value] if isinstance(value, dict | list) else []
    while level and levels:
        level = [v for c in level for v in (c.values() if isinstance(c, dict) else c) if isinstance(v, dict | list)]
        levels -= 1
    return bool(level)


def _reason(error: orjson.JSONDecodeError) -> str:
    return f"{error.msg.split(':')[0][:80]} (line {error.lineno}, column {error.colno})"
