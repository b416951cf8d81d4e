"""What a streaming client sees: whole characters, and nothing of a stop string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.runtime.engine.detokenize import Detokenizer


class Pieces:
    """A tokenizer whose token i is the i-th of some byte strings."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def token_bytes(self, id: int, /) -> bytes:
        return self.pieces[id]


def stream(pieces: list[bytes], stop: tuple[str, ...] = (), min_tokens: int = 0) -> tuple[list[str], str | None]:
    """The texts that come out token by token, the last of them at the end, and the stop string."""
    detokenizer, out = Detokenizer(Pieces(pieces), stop), []
    for i in range(len(pieces)):
        out.append(detokenizer.push(i, may_stop=i + 1 >= min_tokens))
        if detokenizer.stopped is not None:
            break
    return [*out, detokenizer.flush()], detokenizer.stopped


@st.composite
def cut_texts(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """Bytes, mostly UTF-8 of a few letters that stop strings are made of, and a way to cut them into tokens."""
    text = draw(st.one_of(st.text("abé漢😀", max_size=30).map(str.encode), st.binary(max_size=20)))
    cuts = sorted(draw(st.sets(st.integers(0, len(text)))))
    return text, [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@given(cut_texts())
def test_the_pieces_are_the_whole_and_no_character_is_split(case: tuple[bytes, list[bytes]]):
    text, pieces = case
    out, _ = stream(pieces)
    assert "".join(out) == text.decode("utf-8", "replace")


@given(cut_texts(), st.lists(st.text("abé漢", min_size=1, max_size=4), max_size=3).map(tuple))
def test_nothing_of_a_stop_string_leaks(case: tuple[bytes, list[bytes]], stop: tuple[str, ...]):
    text, pieces = case
    out, stopped = stream(pieces, stop)
    shown, whole = "".join(out), text.decode("utf-8", "replace")
    assert whole.startswith(shown)
    assert not any(s in shown for s in stop)
    if stopped is None:
        assert shown == whole
    else:
        assert whole[len(shown) :].startswith(stopped)


@given(cut_texts(), st.text("abé漢", min_size=1, max_size=4))
def test_one_stop_string_ends_the_text_where_it_begins(case: tuple[bytes, list[bytes]], stop: str):
    text, pieces = case
    whole = text.decode("utf-8", "replace")
    out, stopped = stream(pieces, (stop,))
    assert "".join(out) == (whole.split(stop)[0] if stopped else whole)
    assert stopped or stop not in whole


def test_text_is_held_back_only_while_it_may_be_a_stop_string():
    out, stopped = stream([b"so", b" EN", b"D", b" END", b"."], ("END.",))
    assert out == ["so", " ", "", "END ", "", ""] and stopped == "END."


@pytest.mark.parametrize(
    ("pieces", "out"),
    [
        ([b"\xe6", b"\xbc", b"\xa2!"], ["", "", "漢!", ""]),
        ([b"ok \xf0\x9f", b"\x98"], ["ok ", "", "\ufffd"]),
        ([b"\xff", b"a\xc3"], ["\ufffd", "a", "\ufffd"]),
        ([b" word", b"", b" next"], [" word", "", " next", ""]),
    ],
    ids=["three tokens, one character", "cut off", "never text", "spaces stay, control tokens say nothing"],
)
def test_characters_over_several_tokens(pieces: list[bytes], out: list[str]):
    assert stream(pieces)[0] == out


def test_of_two_stop_strings_that_begin_together_the_longer_is_named():
    assert stream([b"x--- y"], ("--", "---")) == (["x", ""], "---")


def test_stop_strings_before_min_tokens_are_text():
    out, stopped = stream([b"STOP", b" and ", b"STOP"], ("STOP",), min_tokens=3)
    assert "".join(out) == "STOP and " and stopped == "STOP"


@pytest.mark.parametrize(("stop", "text"), [("\ufffd", "a"), ("zz", "a\ufffd"), ("a\ufffdq", "a\ufffd")])
def test_half_a_character_at_the_end_can_complete_a_stop_string(stop: str, text: str):
    class Bytes:
        def token_bytes(self, token_id: int) -> bytes:
            return bytes([token_id])

    detokenizer = Detokenizer(Bytes(), (stop,))
    assert detokenizer.push(ord("a")) + detokenizer.push(0xC3) + detokenizer.flush() == text
    assert detokenizer.stopped == (stop if stop == "\ufffd" else None)
