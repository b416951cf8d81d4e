"""What the load client asks: prompts from a seeded generator or from a file of JSON lines.

Lengths are counted in words of a list of common English words, nearly all of which are one token in today's vocabularies.
A prompt starts with words that are this run's alone (the salt), so that no server answers from an earlier run's cache.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

COMMON = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work government number night point home water room mother area money story
fact month lot right study book eye job word business issue side kind head house service friend father power hour game
line end member law car city community name president team minute idea body information back parent face others level
office door health person art war history party result change morning reason research girl guy moment air teacher force
education foot boy age policy process music market sense nation plan college interest death experience effect use class
control field development role effort rate heart drug show leader light voice wife police mind price report decision son
view relationship town road arm difference value building action season society tax director position player record paper
space ground form event official matter center couple site project activity star table need court
"""
WORDS = COMMON.split()
SALT_WORDS = 4


@dataclass(frozen=True, slots=True)
class Prompt:
    """One thing to ask: messages (chat) or text (completions), and how many tokens to answer with."""

    text: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    max_tokens: int = 128

    def body(self, endpoint: str) -> dict[str, Any]:
        """Its part of a request's body for the endpoint `chat` or `completions`."""
        if endpoint == "chat":
            messages = list(self.messages) or [{"role": "user", "content": self.text}]
            return {"messages": messages, "max_tokens": self.max_tokens}
        return {"prompt": self.text or "\n".join(_text_of(m) for m in self.messages), "max_tokens": self.max_tokens}

    def salted(self, salt: str) -> Prompt:
        """The same with `salt` as the first words of the text or of the first message."""
        if not self.messages:
            return replace(self, text=f"{salt} {self.text}")
        first = dict(self.messages[0])
        content = first.get("content")
        if isinstance(content, list):
            first["content"] = [{"type": "text", "text": salt}, *content]
        else:
            first["content"] = f"{salt} {content or ''}"
        return replace(self, messages=(first, *self.messages[1:]))


def _text_of(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


def words(n: int, key: str) -> str:
    """`n` words, always the same for one key."""
    return " ".join(random.Random(key).choices(WORDS, k=n))


@dataclass(frozen=True, slots=True)
class Generated:
    """Prompts of `input_tokens` words, after `shared_tokens` words more that are one of `prefixes` texts in turn."""

    input_tokens: int
    output_tokens: int
    seed: int
    salt: str  # empty: the same prompts in every run
    shared_tokens: int = 0
    prefixes: int = 1

    def prompt(self, row: str, n: int) -> Prompt:
        """The n-th prompt of a row; no two rows share a word sequence, except for the shared prefixes."""
        own = words(self.input_tokens, f"{self.seed}/{self.salt}/{row}/{n}")
        if self.shared_tokens:
            own = f"{self.prefix(n % self.prefixes)} {own}"
        return Prompt(own, max_tokens=self.output_tokens)

    def prefix(self, k: int) -> str:
        """The k-th shared prefix."""
        return words(self.shared_tokens, f"{self.seed}/{self.salt}/prefix/{k}")

    def stream(self, row: str) -> Iterator[Prompt]:
        """A row's prompts, without end."""
        n = 0
        while True:
            yield self.prompt(row, n)
            n += 1


@dataclass(frozen=True, slots=True)
class Listed:
    """Prompts from a file, over and over, each time salted unless the salt is empty."""

    prompts: tuple[Prompt, ...]
    salt: str

    def stream(self, row: str) -> Iterator[Prompt]:
        """A row's prompts, without end."""
        n = 0
        while True:
            prompt = self.prompts[n % len(self.prompts)]
            yield prompt.salted(words(SALT_WORDS, f"{self.salt}/{row}/{n}")) if self.salt else prompt
            n += 1


def read_prompts(path: Path, default_max_tokens: int) -> tuple[Prompt, ...]:
    """One prompt per line: {"prompt": text} or {"messages": [...]}, and if need be "max_tokens". Raises ValueError, OSError."""
    lines = [(n, line) for n, line in enumerate(path.read_text("utf-8").splitlines(), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{path}: no prompts")
    return tuple(_read_line(line, f"{path}:{n}", default_max_tokens) for n, line in lines)


def _read_line(line: str, where: str, default_max_tokens: int) -> Prompt:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where}: not an object")
    limit = value.get("max_tokens", default_max_tokens)
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise ValueError(f"{where}: max_tokens must be a positive whole number")
    text, messages = value.get("prompt"), value.get("messages")
    if isinstance(text, str) and text and messages is None:
        return Prompt(text, max_tokens=limit)
    if isinstance(messages, list) and messages and all(isinstance(m, dict) for m in messages) and text is None:
        return Prompt(messages=tuple(messages), max_tokens=limit)
    raise ValueError(f'{where}: give either "prompt" (text) or "messages" (a list of objects)')
