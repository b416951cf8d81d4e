"""Strict JSON: what is refused, and that everything else is read as Python reads it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.wire.errors import BadRequest
from baseload.wire.json_body import MAX_DEPTH, loads

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def is_utf8(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


@given(JSON.filter(is_utf8))
def test_reads_what_python_writes(value: object):
    assert loads(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"nul",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":1e400}',
        b'{"a":"\\ud800"}',
        b'{"a":"\xff"}',
        b'\xef\xbb\xbf{"a":1}',
        b"{'a':1}",
        b'{"a":1}x',
        '{"a":1}'.encode("utf-16"),
        b"[" * 100_000,
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
    ],
)
def test_refuses_what_is_not_json_or_too_deep(text: bytes):
    with pytest.raises(BadRequest) as refused:
        loads(text)
    assert len(refused.value.message) < 200


def test_brackets_in_strings_are_not_depth():
    assert loads(json.dumps({"a": "[" * 1000}).encode()) == {"a": "[" * 1000}


def test_the_deepest_that_is_allowed():
    loads(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
