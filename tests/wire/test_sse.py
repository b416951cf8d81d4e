"""Server-sent events come in any pieces, with any line ends, and cannot grow without end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.wire.sse import SseParser, TooLong

lines = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=8)
events = st.lists(st.lists(lines, min_size=1, max_size=3).map("\n".join), max_size=6)


def written(said: list[str], end: str, comment: bool) -> bytes:
    """The stream that spells these events."""
    out = [f": keep-alive{end}{end}" if comment else ""]
    for event in said:
        out += [f"event: x{end}", *(f"data: {line}{end}" for line in event.split("\n")), end]
    return "".join(out).encode()


@given(events, st.sampled_from(["\n", "\r\n", "\r"]), st.booleans(), st.lists(st.integers(1, 7), min_size=1))
def test_the_events_do_not_depend_on_the_pieces(said: list[str], end: str, comment: bool, sizes: list[int]):
    data, parser, read, n = written(said, end, comment), SseParser(1 << 16), [], 0
    while data:
        size = sizes[n % len(sizes)]
        read += parser.feed(data[:size])
        data, n = data[size:], n + 1
    assert [*read, *parser.close()] == said


def test_other_fields_comments_and_a_missing_space_are_understood():
    parser = SseParser(1000)
    assert parser.feed(b": hello\n\nid: 7\ndata:a\ndata\ndata:  b\nretry: 5\n\n") == ["a\n\n b"]


def test_a_last_event_without_its_empty_line_counts():
    parser = SseParser(1000)
    assert parser.feed(b"data: [DONE]") == []
    assert parser.close() == ["[DONE]"]
    assert parser.close() == []


@pytest.mark.parametrize("piece", [b"x" * 100, b"data: " + b"x" * 100, b"data: xxxxxxxxxx\n" * 10])
def test_an_event_that_never_ends_is_given_up(piece: bytes):
    parser = SseParser(1000)
    with pytest.raises(TooLong):
        [parser.feed(piece) for _ in range(100)]


def test_many_short_events_are_no_long_one():
    parser = SseParser(100)
    assert sum(len(parser.feed(b"data: 0123456789\n\n")) for _ in range(1000)) == 1000


def test_a_comment_is_a_sign_of_life_and_half_a_line_is_not():
    parser = SseParser(100)
    parser.feed(b": still")
    assert parser.lines == 0
    parser.feed(b" here\n")
    assert parser.lines == 1
