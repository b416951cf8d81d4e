"""Calls as models write them into text, to calls with JSON arguments: what a supplier's own parser would have handed over.

Four forms: `[f(a=1), g(b="x")]` as Python reads it; the same in Java or JavaScript, whose values are kept as they are written;
`<tool_call>{"name": ..., "arguments": ...}</tool_call>`; and lists of `{name: arguments}`, from interfaces that parse.
What is none of these is no call. Arguments without a name are lost: a tool is given its arguments by name.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..wire.chat import ToolCall

LONGEST = 20_000  # characters of an answer that are read
_TAGGED = re.compile(r"<(?:tool_call|function_call)>\s*(\{.*?\})\s*(?=</tool_call>|<function_call>|$)", re.DOTALL)
_HEADED = re.compile(r"\s*([A-Za-z_][\w.]*)\s*\n\s*(\{.*\})\s*", re.DOTALL)  # a name, and JSON on the next line
_AROUND = re.compile(r"<\|[a-z_]+\|>|^```\w*|```$", re.MULTILINE)  # template marks and code fences
_NAME = re.compile(r"[A-Za-z_][\w.$]*")


class NoCall(ValueError):
    """The answer is not of the form."""


def calls(answer: Any, language: str = "python") -> tuple[ToolCall, ...]:
    """The calls of an answer; () where there are none. `language`: python, java or javascript."""
    try:
        if isinstance(answer, str):
            return _of_text(answer[:LONGEST], language)
        return tuple(_named(one) for one in answer) if isinstance(answer, list) else ()
    except (NoCall, SyntaxError, ValueError, RecursionError, MemoryError, TypeError, AttributeError, KeyError):
        return ()


def is_structured(answer: Any) -> bool:
    """Whether an interface parsed it, or it carries JSON: names are then those that such interfaces allow, without dots."""
    return isinstance(answer, list) or (isinstance(answer, str) and _json_call(answer) is not None)


def _named(one: Any) -> ToolCall:
    if not isinstance(one, Mapping) or len(one) != 1:
        raise NoCall
    [(name, arguments)] = one.items()
    return _call(name, arguments)


def _call(name: Any, arguments: Any) -> ToolCall:
    """Arguments that are no JSON are left as they are: to find that out is a check's work."""
    return ToolCall("", str(name), arguments if isinstance(arguments, str) else json.dumps(arguments, default=str))


def _json_call(text: str) -> Any:
    """JSON that says calls: tagged, or all of the text; None for any other text."""
    try:
        if found := _TAGGED.findall(text):
            return [_lenient(one) for one in found]
        if headed := _HEADED.fullmatch(text):
            return [{headed[1]: json.loads(headed[2])}]
        said = json.loads(_AROUND.sub("", text).strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    said = said.get("tool_calls", said) if isinstance(said, dict) else said
    said = said if isinstance(said, list) else [said]
    return said if said and all(isinstance(one, dict) for one in said) else None


def _lenient(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return ast.literal_eval(text)  # some write a Python dict


def _of_text(text: str, language: str) -> tuple[ToolCall, ...]:
    if (said := _json_call(text)) is not None:
        return tuple(_of_json(one) for one in said)
    text = _AROUND.sub("", text).strip()
    if language != "python":
        return (_foreign(text),)
    text = text.replace("\\_", "_")  # of those who write Markdown
    if text.endswith(";"):
        return tuple(_python(line.value) for line in ast.parse(text).body if isinstance(line, ast.Expr))
    text = text if text.startswith("[") else f"[{text}]"
    read = ast.parse(text, mode="eval").body
    if not isinstance(read, ast.List) or not read.elts:
        raise NoCall
    return tuple(_python(one) for one in read.elts)


def _of_json(one: dict[str, Any]) -> ToolCall:
    if "name" in one:
        return _call(one["name"], one.get("arguments", one.get("parameters", {})))
    return _named(one)


def _python(node: ast.expr) -> ToolCall:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):  # a call in quotes
        node = ast.parse(node.value, mode="eval").body
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name | ast.Attribute):
        raise NoCall
    return _call(ast.unparse(node.func), {word.arg: _value(word.value) for word in node.keywords if word.arg})


def _value(node: ast.expr) -> Any:
    """A literal as such; anything else as it is written. Tuples and sets are lists in JSON."""
    try:
        found = ast.literal_eval(node)
    except (ValueError, TypeError):
        if isinstance(node, ast.List | ast.Tuple):
            return [_value(one) for one in node.elts]
        if isinstance(node, ast.Dict):
            keys = [ast.unparse(key) if key and not isinstance(key, ast.Constant) else key and key.value for key in node.keys]
            return {str(key): _value(one) for key, one in zip(keys, node.values, strict=True)}
        return _number(node)
    return list(found) if isinstance(found, set | frozenset) else found


def _number(node: ast.expr) -> Any:
    """`2/3` and the like, computed, as whoever reads such calls does; other expressions as text."""
    left, right = (_number(side) for side in (node.left, node.right)) if isinstance(node, ast.BinOp) else (None, None)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if (
        isinstance(node, ast.UnaryOp)
        and isinstance(node.op, ast.USub)
        and isinstance(inner := _number(node.operand), int | float)
    ):
        return -inner
    if isinstance(node, ast.BinOp) and isinstance(left, int | float) and isinstance(right, int | float):
        if isinstance(node.op, ast.Add | ast.Sub):
            return left + right if isinstance(node.op, ast.Add) else left - right
        if isinstance(node.op, ast.Mult):
            return left * right
        if isinstance(node.op, ast.Div) and right:
            return left / right
    return ast.unparse(node)


def _foreign(text: str) -> ToolCall:
    """One call `a.b(x=1, y=new T())`; each value as it is written, quotes taken off."""
    text = text.removeprefix("[").removesuffix("]").strip().removesuffix(";")
    found = _NAME.match(text)
    if found is None or text[found.end() : found.end() + 1] != "(" or not text.endswith(")"):
        raise NoCall
    pairs = [part.partition("=") for part in _parts(text[found.end() + 1 : -1])]
    return _call(
        found[0], {key.strip(): value.strip().strip("\"'") for key, equals, value in pairs if equals and _is_name(key)}
    )


def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text.strip()) is not None


def _parts(text: str) -> Sequence[str]:
    """What stands between the commas that no bracket or quote holds."""
    found, depth, quote, start = [], 0, "", 0
    for at, c in enumerate(text):
        if quote:
            quote = "" if c == quote and text[at - 1] != "\\" else quote
        elif c in "\"'`":
            quote = c
        elif c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c == "," and not depth:
            found.append(text[start:at])
            start = at + 1
    return [part for part in (*found, text[start:]) if part.strip()]
