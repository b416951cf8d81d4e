"""Gemma's (FunctionGemma): call:name{key:value,...} between tags, texts between <escape> marks."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .dialect import Dialect, WholeCalls

OPEN, CLOSE, QUOTE = "<start_function_call>", "<end_function_call>", "<escape>"
_CALL = re.compile(r"\s*call:([\w.-]+)\s*(\{.*\})\s*", re.DOTALL)
_TEXT = re.compile(f"{QUOTE}(.*?){QUOTE}", re.DOTALL)
_KEY = re.compile(r"([{,])\s*([A-Za-z_][\w-]*)\s*:")


def parse(text: str) -> tuple[str, Mapping[str, Any]] | None:
    """A call's name and arguments; None where it is none."""
    match = _CALL.fullmatch(text)
    if match is None:
        return None
    texts: list[str] = []

    def keep(found: re.Match[str]) -> str:
        texts.append(found[1])
        return f'"\x00{len(texts) - 1}"'

    bare = _KEY.sub(r'\1"\2":', _TEXT.sub(keep, match[2]))
    try:
        arguments = json.loads(bare, strict=False)
    except (ValueError, RecursionError):
        return None
    return (match[1], _restored(arguments, texts)) if isinstance(arguments, dict) else None


def _restored(value: Any, texts: Sequence[str]) -> Any:
    if isinstance(value, str):
        return texts[int(value[1:])] if value.startswith("\x00") and value[1:].isdigit() else value
    if isinstance(value, list):
        return [_restored(item, texts) for item in value]
    return {k: _restored(v, texts) for k, v in value.items()} if isinstance(value, dict) else value


def _grammar(bodies: Sequence[tuple[str, str]]) -> str:
    # Arguments as JSON are read too: a quoted key or text is one all the same.
    calls = " | ".join(f"{json.dumps(f'call:{name}')} {rule}" for name, rule in bodies)
    return f'"{OPEN}" ({calls}) "{CLOSE}"'


GEMMA = Dialect(
    name="gemma",
    signs=(OPEN,),
    opens=(OPEN,),
    reader=lambda names: WholeCalls(names, parse, CLOSE, OPEN),
    grammar=_grammar,
    separator='""',
)
