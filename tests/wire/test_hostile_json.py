"""JSON made to stall its reader is refused in a moment: one body must not stop the others."""

import pytest

from baseload.wire.errors import BadRequest
from baseload.wire.json_body import MAX_DEPTH, loads


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    [
        b"[" * 200 + b'"' + b'\\"' * 2_000_000,  # a string without an end, of nothing but escaped quotes
        b"[" * 200 + b'"' * 2_000_001,
        b'{"a":' * 500_000,
        b"[" * 5_000_000,
        b'["' + b"[" * 2_000_000,
    ],
    ids=["escaped quotes", "quotes", "objects", "lists", "open string"],
)
def test_a_long_and_broken_text_is_refused_at_once(text: bytes):
    with pytest.raises(BadRequest) as raised:
        loads(text)
    assert len(raised.value.message) < 200


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[1,{"a":', b"}]")])
def test_depth_is_counted_over_lists_and_objects(opening: bytes, closing: bytes):
    levels = 2 if opening.startswith(b"[1") else 1
    fits = MAX_DEPTH // levels
    loads(opening * fits + b"1" + closing * fits)
    with pytest.raises(BadRequest, match="deeper"):
        loads(opening * (fits + 1) + b"1" + closing * (fits + 1))


def test_a_wide_text_is_not_a_deep_one():
    assert len(loads(b"[" + b"[],{}," * 50_000 + b"[]]")) == 100_001


def test_an_integer_beyond_64_bits_is_no_integer():
    assert loads(b"[18446744073709551615]") == [2**64 - 1]
    assert isinstance(loads(b"99999999999999999999"), float)
