"""What a dialect is, and the reading of calls that are JSON objects: by characters, so that arguments can be streamed."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ....wire.chat import ToolSpec

MOST_CALLS = 8  # of one answer that must be calls
STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # as models write JSON


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer: words, the beginning of a call (its name), or more of its arguments as JSON text."""

    kind: Literal["text", "name", "arguments"]
    text: str


class Reader(Protocol):
    """Reads the calls of one answer from their opening mark on."""

    def feed(self, text: str) -> tuple[list[Piece], str | None]:
        """What `text` brings; and, once the calls are over, what follows them."""
        ...

    def close(self) -> list[Piece]:
        """The answer is over."""
        ...


@dataclass(frozen=True, slots=True)
class Dialect:
    """One way to write calls.

    `opens`: marks that begin calls; of one that is "{", the answer must begin with it. `reader` is given the names that may be
    called. `grammar(bodies)` is a Lark expression of one call, of alternatives (name, rule of its arguments).
    """

    name: str
    signs: tuple[str, ...]  # in a chat template that speaks it
    opens: tuple[str, ...]
    reader: Callable[[frozenset[str]], Reader]
    grammar: Callable[[Sequence[tuple[str, str]]], str]
    separator: str = '"\\n"'  # between calls, in Lark; empty: one call an answer
    write: Callable[[str, str], str] | None = None  # a call (name, arguments) as text, for templates that don't

    def is_spoken_by(self, template: str) -> bool:
        """Whether a chat template uses it."""
        return any(sign in template for sign in self.signs)

    def forced(self, tools: Sequence[ToolSpec], parallel: bool) -> str:
        """The Lark grammar of an answer that consists of calls to `tools`."""
        bodies = [(tool.name, f"args_{i}") for i, tool in enumerate(tools)]
        more = f" ({self.separator} call){{0,{MOST_CALLS - 1}}}" if parallel and self.separator else ""
        rules = [f"start: call{more}", f"call: {self.grammar(bodies)}"]
        rules += [f"args_{i}: %json {json.dumps(arguments_schema(tool))}" for i, tool in enumerate(tools)]
        return "\n".join(rules)


def arguments_schema(tool: ToolSpec) -> dict[str, Any]:
    """The JSON schema of a tool's arguments, an object."""
    own = dict(tool.parameters)
    return {**own, "type": "object", "x-guidance": STYLE} if own.get("type", "object") == "object" else own


def json_call(bodies: Sequence[tuple[str, str]], key: str = "arguments") -> str:
    """Lark of {"name": ..., key: {...}}, one alternative for each tool."""
    heads = [(json.dumps('{"name": ' + json.dumps(name) + f', "{key}": '), rule) for name, rule in bodies]
    return "(" + " | ".join(f'{head} {rule} "}}"' for head, rule in heads) + ")"


def json_text(name: str, arguments: str) -> str:
    """A call as such an object."""
    return '{"name": ' + json.dumps(name) + f', "arguments": {arguments or "{}"}' + "}"


@dataclass(slots=True)
class JsonCalls:
    """Reads one or several objects {"name": ..., "arguments": ...}, in a list or not, until `end` (or the answer's end).

    What is no call after all, or calls what does not exist, is given back as text.
    """

    names: frozenset[str]
    end: str = ""
    opening: str = ""  # what stood before, given back with a call that fails
    keys: tuple[str, ...] = ("arguments", "parameters")
    _raw: str = ""  # of the object being read, from its first character
    _scan: "_Object | None" = None
    _called: bool = False
    _tail: str = ""  # held back: it may be the beginning of `end`

    def feed(self, text: str) -> tuple[list[Piece], str | None]:
        """See Reader."""
        pieces: list[Piece] = []
        text = self._tail + text
        self._tail = ""
        at = 0
        while at < len(text):
            if self._scan is not None:
                self._raw += text[at]
                failed = not self._scan.take(text[at], pieces)
                at += 1
                if failed:
                    return [*_merged(pieces), *self._given_back()], text[at:]
                if self._scan.is_over:
                    self._called, self._scan, self._raw, self.opening = True, None, "", ""
            elif self.end and text.startswith(self.end, at):
                return _merged(pieces), text[at + len(self.end) :]
            elif self.end and self.end.startswith(text[at:]):
                self._tail = text[at:]
                break
            elif text[at] == "{":
                self._scan, self._raw = _Object(self.names, self.keys), self._raw + "{"
                at += 1
            elif text[at] in " \n\r\t[],;":
                self._raw = self._raw + text[at] if not self._called else ""
                at += 1
            else:
                return [*_merged(pieces), *self._given_back()], text[at:]
        return _merged(pieces), None

    def close(self) -> list[Piece]:
        """See Reader. A call that breaks off has begun: the client sees how far it came."""
        if self._scan is not None and self._scan.is_told:
            return []
        return self._given_back()

    def _given_back(self) -> list[Piece]:
        told = self._scan is not None and self._scan.is_told
        text = "" if told else self.opening + self._raw
        self._raw, self._scan, self.opening = "", None, ""
        return [Piece("text", text)] if text.strip() else []


class _Object:
    """One call's object, read a character at a time."""

    def __init__(self, names: frozenset[str], keys: tuple[str, ...]) -> None:
        self._names, self._keys = names, keys
        self._depth, self._quoted, self._escaped = 1, False, False
        self._key, self._word, self._in_value = "", "", False
        self._held = ""  # arguments that came before their name
        self.is_told = self.is_over = False

    def take(self, c: str, pieces: list[Piece]) -> bool:
        """Whether it can still be a call; what is sure goes to `pieces`."""
        at_top = self._depth == 1 and not self._quoted
        if self._quoted:
            self._escaped, ended = c == "\\" and not self._escaped, c == '"' and not self._escaped
            self._quoted = not ended
        elif c == '"':
            self._quoted = True
        elif c in "{[":
            self._depth += 1
        elif c in "}]":
            self._depth -= 1
        if at_top and c == ":" and not self._in_value:
            self._key, self._word, self._in_value = _string(self._word) or "", "", True
            return True
        if at_top and (c == "," or self._depth == 0):
            if self._in_value and not self._end_value(pieces):
                return False
            self._word, self._in_value = "", False
            self.is_over = self._depth == 0
            return not self.is_over or self.is_told
        if self._in_value and self._key in self._keys:
            self._argue(c, pieces)
        else:
            self._word += c
        return True

    def _end_value(self, pieces: list[Piece]) -> bool:
        if self._key == "name":
            name = _string(self._word)
            if name not in self._names:
                return False
            self.is_told = True
            pieces.append(Piece("name", name))
            if self._held:
                pieces.append(Piece("arguments", self._held))
        return True

    def _argue(self, c: str, pieces: list[Piece]) -> None:
        if not self._word and c.isspace():
            return
        self._word = "begun"
        if self.is_told:
            pieces.append(Piece("arguments", c))
        else:
            self._held += c


def _string(text: str) -> str | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, str) else None


def _merged(pieces: Iterable[Piece]) -> list[Piece]:
    """Neighbouring arguments as one."""
    out: list[Piece] = []
    for piece in pieces:
        if out and piece.kind == out[-1].kind == "arguments":
            out[-1] = Piece("arguments", out[-1].text + piece.text)
        else:
            out.append(piece)
    return out


@dataclass(slots=True)
class WholeCalls:
    """Reads calls that can be understood only when they are whole: `parse(text)` gives (name, arguments), or None."""

    names: frozenset[str]
    parse: Callable[[str], tuple[str, Mapping[str, Any]] | None]
    end: str
    opening: str = ""
    _raw: str = field(default="")

    def feed(self, text: str) -> tuple[list[Piece], str | None]:
        """See Reader."""
        self._raw += text
        body, end, rest = self._raw.partition(self.end)
        if not end:
            return [], None
        self._raw = body
        return self._said(end), rest

    def close(self) -> list[Piece]:
        """See Reader."""
        return self._said("")

    def _said(self, end: str) -> list[Piece]:
        found = self.parse(self._raw)
        if found is None or found[0] not in self.names:
            return [Piece("text", self.opening + self._raw + end)]
        return [Piece("name", found[0]), Piece("arguments", json.dumps(found[1], ensure_ascii=False))]
