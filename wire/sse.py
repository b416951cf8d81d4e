"""Server-sent events: bytes in any pieces to the data of each event, and chunks that are written once a token.

https://html.spec.whatwg.org/multipage/server-sent-events.html: comments and fields other than `data` are passed over.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson

_END = re.compile(rb"\r\n|\n|\r")


class TooLong(ValueError):
    """An event is longer than its reader takes."""


class SseParser:
    """`feed` it bytes as they come; it gives the data of every event that they complete."""

    def __init__(self, longest: int) -> None:
        self._longest = longest  # bytes of one event
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0
        self.lines = 0  # seen so far, comments too: a sign of life

    def feed(self, piece: bytes) -> list[str]:
        """The events that end in `piece`. Raises TooLong."""
        text = self._rest + piece
        # A carriage return at the end may be the first half of a line's end.
        held = text.endswith(b"\r")
        *lines, self._rest = _END.split(text[:-1] if held else text) if b"\r" in text else text.split(b"\n")
        if held:
            self._rest += b"\r"
        if len(self._rest) + self._size > self._longest:
            raise TooLong
        events: list[str] = []
        for line in lines:
            if line or self._data:
                events += self._line(line)
        self.lines += len(lines)
        return events

    def close(self) -> list[str]:
        """The event that was never closed by an empty line, if there is one: some servers end that way."""
        rest, self._rest = self._rest.removesuffix(b"\r"), b""
        return [*self._line(rest), *self._line(b"")]

    def _line(self, line: bytes) -> list[str]:
        if not line:
            data, self._data, self._size = self._data, [], 0
            return [b"\n".join(data).decode("utf-8", "replace")] if data else []
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(value)
            if self._size > self._longest:
                raise TooLong
        return []


def data_event(chunk: Mapping[str, Any] | str) -> bytes:
    """A chunk as an event without a name."""
    return b"data: " + (chunk.encode() if isinstance(chunk, str) else orjson.dumps(chunk)) + b"\n\n"


def named_event(chunk: Mapping[str, Any] | str) -> bytes:
    """A chunk, an object, as an event of the name that stands in its `type`."""
    name = "error" if isinstance(chunk, str) else chunk["type"]
    return b"event: " + name.encode() + b"\n" + data_event(chunk)


class TextChunks:
    """Chunks whose text alone changes, one kind for each choice; cut open where the text goes. They are written once a token,
    so they are pasted and not built."""

    MARK = "\x00"

    def __init__(
        self, make: Callable[[int], Mapping[str, Any]], frame: Callable[[Mapping[str, Any]], bytes] = data_event
    ) -> None:
        """`make` gives a choice's chunk with MARK for its text, `frame` the event that holds it."""
        self._make, self._frame = make, frame
        self._cut: dict[int, tuple[bytes, bytes]] = {}  # by choice

    def write(self, index: int, text: str) -> bytes:
        """The chunk of choice `index` with `text` in it, as an event."""
        if index not in self._cut:
            before, after = self._frame(self._make(index)).split(orjson.dumps(self.MARK))
            self._cut[index] = before, after
        before, after = self._cut[index]
        return before + orjson.dumps(text) + after
