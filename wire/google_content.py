"""The contents of Google's API, read and written: text, thoughts, images, function calls and their results.

Fields come in camelCase and in snake_case, from one client even in one request. A thought's signature is of use to this
protocol's servers alone, so in the neutral language it bears their mark.
"""

import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from . import fields
from .anthropic_content import arguments
from .chat import Block, Image, Message, Reasoning, Text, ToolCall, ToolReference, ToolResult
from .fields import bad, items, read

SIGNED = "google_generate:"
UNSIGNED = "skip_thought_signature_validator"  # the vendor's word for a call that its model did not make
MAX_CONTENTS, MAX_PARTS = 100_000, 10_000

# --------------------------------------------------------------------------------------------- fields in either spelling


@cache
def snake(name: str) -> str:
    """A camelCase name in snake_case."""
    return re.sub("[A-Z]", lambda found: "_" + found[0].lower(), name)


def pick(table: Mapping[str, Any], name: str) -> Any:
    """The field `name`, in either spelling."""
    value = table.get(name)
    return table.get(snake(name)) if value is None else value


def given(table: Mapping[str, Any], name: str, kind: type, default: Any = None, *, at: str = "") -> Any:
    """fields.read in either spelling."""
    return read({name: pick(table, name)}, name, kind, default, at=at)


def listed(value: Any, at: str, most: int) -> list[Any]:
    """A list; one object stands for a list of it, as in the vendor's own examples."""
    return [value] if isinstance(value, dict) else items({at: value}, at, most)


def needed(table: Mapping[str, Any], name: str, at: str) -> str:
    """A string that must be there."""
    found = given(table, name, str, at=f"{at}.")
    if not found:
        raise bad(f"{at}.{name}", "is missing")
    return found


# --------------------------------------------------------------------------------------------- read


def parse_system(value: Any) -> tuple[Text, ...]:
    """`systemInstruction`: a string, a content or its parts. Raises BadRequest."""
    at = "systemInstruction"
    if value is None or isinstance(value, str):
        return (Text(value),) if value else ()
    if isinstance(value, dict) and "parts" in value:
        value = value["parts"]
    texts: list[Text] = []
    for i, part in enumerate(listed(value, at, MAX_PARTS)):
        text = part if isinstance(part, str) else given(part, "text", str, at=f"{at}[{i}].") if isinstance(part, dict) else None
        if text is None:
            raise bad(f"{at}[{i}]", "must be text")
        texts += [Text(text)] if text else []
    return tuple(texts)


def parse_contents(values: Sequence[Any]) -> list[Message]:
    """The turns of a conversation. Raises BadRequest."""
    reader = _Reader()
    return [message for i, value in enumerate(values) for message in reader.content(value, f"contents[{i}]")]


class _Reader:
    """Reads turns in their order: a call without an id gets one; a result without one answers the first call of its name."""

    def __init__(self) -> None:
        self._calls = 0
        self._waiting: list[ToolCall] = []

    def content(self, content: Any, at: str) -> list[Message]:
        """One turn; function results become messages of role `tool` before the rest of it."""
        if isinstance(content, str):
            return [Message("user", (Text(content),))]
        if not isinstance(content, dict):
            raise bad(at, "must be an object")
        role = read(content, "role", str, "user", at=f"{at}.") or "user"
        if role not in ("user", "model", "function"):
            raise bad(f"{at}.role", "must be user or model")
        parts = listed(content.get("parts"), f"{at}.parts", MAX_PARTS)
        blocks = [block for i, part in enumerate(parts) for block in self._part(part, f"{at}.parts[{i}]")]
        results = [Message("tool", (b,)) for b in blocks if isinstance(b, ToolResult)]
        rest = tuple(b for b in blocks if not isinstance(b, ToolResult))
        return [*results, *([Message("assistant" if role == "model" else "user", rest)] if rest or not results else [])]

    def _part(self, part: Any, at: str) -> list[Block]:
        if isinstance(part, str):
            return [Text(part)]
        if not isinstance(part, dict):
            raise bad(at, "must be an object")
        signature = given(part, "thoughtSignature", str, at=f"{at}.")
        signature = SIGNED + signature if signature else None
        thought, text = given(part, "thought", bool, False, at=f"{at}."), given(part, "text", str, at=f"{at}.")
        if thought:
            return [Reasoning(text or "", signature)]
        signed: list[Block] = [Reasoning("", signature)] if signature else []
        if text is not None:
            return [*signed, *([Text(text)] if text else [])]
        if (call := given(part, "functionCall", dict, at=f"{at}.")) is not None:
            return [*signed, self._call(call, f"{at}.functionCall")]
        if (result := given(part, "functionResponse", dict, at=f"{at}.")) is not None:
            return [self._result(result, f"{at}.functionResponse")]
        if (blob := given(part, "inlineData", dict, at=f"{at}.")) is not None:
            return [*signed, _blob(blob, f"{at}.inlineData")]
        if pick(part, "fileData") is not None:
            raise bad(f"{at}.fileData", "names a file elsewhere; addresses are not fetched")
        return signed  # what hosted tools did: nobody else can read it

    def _call(self, call: Mapping[str, Any], at: str) -> ToolCall:
        name, args = needed(call, "name", at), read(call, "args", dict, {}, at=f"{at}.")
        self._calls += 1
        id = read(call, "id", str, at=f"{at}.") or f"call_{self._calls}"
        found = ToolCall(id, name, json.dumps(args, ensure_ascii=False))
        self._waiting.append(found)
        return found

    def _result(self, result: Mapping[str, Any], at: str) -> ToolResult:
        name, id = needed(result, "name", at), read(result, "id", str, at=f"{at}.")
        said = read(result, "response", dict, {}, at=f"{at}.")
        asked = next((c for c in self._waiting if (c.id == id if id else c.name == name)), None)
        if asked:
            self._waiting.remove(asked)
        blobs = [
            _blob(blob, f"{at}.parts[{i}].inlineData")
            for i, part in enumerate(listed(result.get("parts"), f"{at}.parts", MAX_PARTS))
            if isinstance(part, dict) and (blob := given(part, "inlineData", dict, at=f"{at}.parts[{i}]."))
        ]
        is_error = set(said) == {"error"}
        value = next(iter(said.values())) if is_error or set(said) in ({"output"}, {"result"}) else said
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return ToolResult(id or (asked.id if asked else f"call_{name}"), (Text(text), *blobs), is_error)


def _blob(blob: Mapping[str, Any], at: str) -> Text | Image:
    media, data = needed(blob, "mimeType", at), needed(blob, "data", at)
    # Base64 in either alphabet, with or without its padding: so the vendor's JSON has it.
    data = data.rstrip("=").translate({ord("-"): "+", ord("_"): "/"})
    data += "=" * (-len(data) % 4)
    if not media.startswith("text/"):
        return fields.image(f"data:{media};base64,{data}", f"{at}.data")
    try:
        return Text(fields.image(f"data:image/x;base64,{data}", f"{at}.data").data.decode())
    except UnicodeDecodeError as error:
        raise bad(f"{at}.data", "is not text in UTF-8") from error


# --------------------------------------------------------------------------------------------- schemas

_TYPES = ("STRING", "NUMBER", "INTEGER", "BOOLEAN", "ARRAY", "OBJECT", "NULL")
_KEYWORDS: dict[str, str] = {snake(name): name for name in (
    "anyOf", "minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties", "additionalProperties",
    "propertyOrdering",
)} | {"defs": "$defs", "ref": "$ref"}  # fmt: skip
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")


def parse_schema(value: Mapping[str, Any], at: str) -> Mapping[str, Any]:
    """The JSON schema that a Schema of this protocol means; a JSON schema stays as it is. Raises BadRequest."""
    if fields.depth(value) > fields.MAX_SCHEMA_DEPTH:
        raise bad(at, f"is nested deeper than {fields.MAX_SCHEMA_DEPTH} levels")
    return fields.schema(_schema(value), at)


def _schema(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    out: dict[str, Any] = {_KEYWORDS.get(str(key), str(key)): item for key, item in value.items()}
    for name, item in out.items():
        if name in ("properties", "$defs", "definitions") and isinstance(item, dict):
            out[name] = {key: _schema(inner) for key, inner in item.items()}
        elif name in ("items", "additionalProperties", "not"):
            out[name] = _schema(item)
        elif name in ("anyOf", "oneOf", "allOf", "prefixItems") and isinstance(item, list):
            out[name] = [_schema(inner) for inner in item]
        elif name in _COUNTS and isinstance(item, str) and item.isdecimal() and len(item) < 10:
            out[name] = int(item)  # 64 bits are written as strings
        elif name == "$ref" and isinstance(item, str):
            out[name] = item.replace("#/defs/", "#/$defs/", 1)
    if out.get("type") == "TYPE_UNSPECIFIED":
        del out["type"]
    elif out.get("type") in _TYPES:
        out["type"] = out["type"].lower()
    out.pop("example", None)
    return _nullable(_ordered(out))


def _ordered(schema: dict[str, Any]) -> dict[str, Any]:
    """Its properties in the order in which an answer shall have them."""
    order, properties = schema.pop("propertyOrdering", None), schema.get("properties")
    if isinstance(order, list) and isinstance(properties, dict):
        first = [name for name in order if isinstance(name, str) and name in properties]
        schema["properties"] = {name: properties[name] for name in dict.fromkeys([*first, *properties])}
    return schema


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.pop("nullable", None) is not True:
        return schema
    if isinstance(schema.get("anyOf"), list):
        schema["anyOf"] = [*schema["anyOf"], {"type": "null"}]
    if isinstance(schema.get("enum"), list):
        schema["enum"] = [*schema["enum"], None]
    if isinstance(schema.get("type"), str):
        schema["type"] = [schema["type"], "null"]
    return schema


# --------------------------------------------------------------------------------------------- written


def render_contents(messages: Sequence[Message], names: Mapping[str, str], signed: bool) -> list[dict[str, Any]]:
    """Turns of user and model. `names`: of the functions called, by the calls' ids. `signed`: a call without a signature would
    be refused."""
    out: list[dict[str, Any]] = []
    for message in messages:
        role = "model" if message.role == "assistant" else "user"
        parts = _parts(message, names)
        if message.role in ("system", "developer"):
            parts = [{"text": f"<system-reminder>\n{message.text}\n</system-reminder>\n"}]
        first = next((part for part in parts if "functionCall" in part), None)
        if signed and first:
            first.setdefault("thoughtSignature", UNSIGNED)
        if not parts:
            continue
        if out and out[-1]["role"] == role:
            out[-1]["parts"] += parts
        else:
            out.append({"role": role, "parts": parts})
    return out


def call_names(messages: Sequence[Message]) -> dict[str, str]:
    """The functions that a conversation called, by the calls' ids."""
    return {block.id: block.name for message in messages for block in message.content if isinstance(block, ToolCall)}


def _parts(message: Message, names: Mapping[str, str]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    signature = ""  # of the part that comes next
    for block in message.content:
        if isinstance(block, Reasoning):
            # What was thought need not come back; its signature must, where it stood.
            if signature := signature_of(block.signature):
                parts.append({"text": "", "thoughtSignature": signature})
            continue
        new = _part_objects(block, names)
        if parts and new and signature and not isinstance(block, ToolResult):
            parts.pop()
            new[0]["thoughtSignature"] = signature
        signature, parts = "" if new else signature, [*parts, *new]
    return parts


def signature_of(signature: str | None) -> str:
    """A signature as this protocol's servers know it; empty for another's."""
    return signature.removeprefix(SIGNED) if signature and signature.startswith(SIGNED) else ""


def _part_objects(block: Block | ToolReference, names: Mapping[str, str]) -> list[dict[str, Any]]:
    match block:
        case Text():
            return [{"text": block.text}] if block.text else []
        case Image():
            return [{"inlineData": {"mimeType": block.media_type, "data": b64encode(block.data).decode()}}]
        case ToolCall():
            return [{"functionCall": {"id": block.id, "name": block.name, "args": arguments(block.arguments)}}]
        case ToolReference():
            return [{"text": f"The tool {block.name} is available now."}]
        case ToolResult():
            inner = [part for b in block.content for part in _part_objects(b, names)]
            text = "".join(part["text"] for part in inner if "text" in part)
            said = {"error" if block.is_error else "output": text}
            response = {"id": block.call_id, "name": names.get(block.call_id, block.call_id), "response": said}
            # Beside it, not in it: that only the newest models take.
            return [{"functionResponse": response}, *(part for part in inner if "inlineData" in part)]
        case _:
            return []
