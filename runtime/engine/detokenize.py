"""Token ids to text as they come: never half a character, never a part of a stop string."""

import codecs
from collections.abc import Sequence
from typing import Protocol


class TokenBytes(Protocol):
    """What is needed of a tokenizer here."""

    def token_bytes(self, id: int, /) -> bytes:
        """The bytes that a token stands for; empty for control tokens."""
        ...


class Detokenizer:
    """One answer's text. `stopped` is the stop string that ended it, which is not part of the text."""

    def __init__(self, tokenizer: TokenBytes, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(s for s in stop if s)
        # Bytes that cannot be UTF-8 become U+FFFD; those that may yet become a character are held back.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # could be the beginning of a stop string
        self.stopped: str | None = None

    def push(self, token_id: int, *, may_stop: bool = True) -> str:
        """The text that is now certain. With `may_stop` False stop strings are text like any other."""
        text = self._decoder.decode(self._tokenizer.token_bytes(token_id))
        return self._pass(self._held + text) if may_stop and self._stop else text

    def flush(self) -> str:
        """What was held back, once no more tokens come; nothing after a stop string, which half a character can complete."""
        if self.stopped is not None:
            return ""
        text = self._held + self._decoder.decode(b"", True)
        self._held = ""
        return self._pass(text) + self._held if self._stop else text

    def _pass(self, text: str) -> str:
        found = [(at, -len(stop), stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            at, _, self.stopped = min(found)  # the first one; of two that begin there, the longer
            self._held = ""
            return text[:at]
        keep = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
