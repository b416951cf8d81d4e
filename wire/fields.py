"""Reading the fields of a JSON object, each with its type and range. Errors name the field and the reason, never the input.

An explicit null is an absent field. A bool is not a number here.
"""

import base64
import binascii
import json
import math
from collections.abc import Mapping
from typing import Any

from .chat import EFFORTS as RANKED
from .chat import Effort, Extras, Image, ResponseFormat, SamplingParams, ToolSpec
from .errors import BadRequest

MAX_SCHEMA_BYTES, MAX_SCHEMA_DEPTH = 256 << 10, 64
MAX_PATTERN, MAX_CHOICES = 65_536, 1024
MAX_IMAGE_BYTES = 20 << 20
NAMED, MAX_NAME = ("data_class", "task", "session"), 128  # words in `baseload`
MAX_DESCRIPTION = 65_536  # characters of a tool's description
NAMES = {str: "a string", bool: "true or false", list: "a list", dict: "an object", int: "an integer", float: "a number"}

# As OpenAI's protocols call them; what one of tomorrow is called means nothing here.
EFFORTS: dict[str, Effort] = {**{effort: effort for effort in RANKED}, "xhigh": "max"}
EFFORT_NAMES: dict[Effort, str] = {effort: "xhigh" if effort == "max" else effort for effort in RANKED}


def bad(param: str, reason: str) -> BadRequest:
    """The error for one field."""
    return BadRequest(f"'{param}' {reason}.", param=param)


def read(body: Mapping[str, Any], name: str, kind: type, default: Any = None, *, at: str = "") -> Any:
    """The field, of `kind` exactly; `default` where it is absent or null. `at` is the path before it, for the message."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise bad(at + name, f"must be {NAMES[kind]}")
    return value


def number(body: Mapping[str, Any], name: str, default: Any, low: float, high: float, *, above: bool = False) -> Any:
    """A float in [low, high]; with `above`, in (low, high]."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise bad(name, "must be a number")
    if not (low < value if above else low <= value) or value > high:
        raise bad(name, f"must be {'above' if above else 'at least'} {low:g} and at most {high:g}")
    return float(value)


def integer(body: Mapping[str, Any], name: str, default: Any, low: int, high: int) -> Any:
    """An int in [low, high]; 3.0 is not one."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise bad(name, "must be an integer")
    if not low <= value <= high:
        raise bad(name, f"must be from {low} to {high}")
    return value


def items(body: Mapping[str, Any], name: str, most: int) -> list[Any]:
    """A list of at most `most` items; [] where absent."""
    found = read(body, name, list, [])
    if len(found) > most:
        raise bad(name, f"has {len(found)} items, at most {most} are taken")
    return found


def sampling(body: Mapping[str, Any], max_tokens: int | None, logprobs: int | None) -> SamplingParams:
    """The sampling fields that chat and plain completions share: OpenAI's, and those that vLLM adds."""
    return SamplingParams(
        temperature=number(body, "temperature", 1.0, 0, 2),
        top_p=number(body, "top_p", 1.0, 0, 1, above=True),
        top_k=max(0, integer(body, "top_k", 0, -1, 1 << 31)),  # vLLM's -1 is off, as is 0
        min_p=number(body, "min_p", 0.0, 0, 1),
        repetition_penalty=number(body, "repetition_penalty", 1.0, 0, 10, above=True),
        presence_penalty=number(body, "presence_penalty", 0.0, -2, 2),
        frequency_penalty=number(body, "frequency_penalty", 0.0, -2, 2),
        logit_bias=_logit_bias(body),
        seed=integer(body, "seed", None, -(2**63), 2**63 - 1),
        max_tokens=max_tokens,
        min_tokens=integer(body, "min_tokens", 0, 0, 1 << 31),
        stop=_stop(body),
        stop_token_ids=_token_ids(body, "stop_token_ids", 128),
        ignore_eos=read(body, "ignore_eos", bool, False),
        logprobs=logprobs,
        n=integer(body, "n", 1, 1, 128),
    )


def _stop(body: Mapping[str, Any]) -> tuple[str, ...]:
    found = body.get("stop")
    if isinstance(found, str):
        found = [found]
    found = items({"stop": found}, "stop", 16)
    if not all(isinstance(s, str) and 0 < len(s) <= 1024 for s in found):
        raise bad("stop", "must be a string, or a list of them, each of 1 to 1024 characters")
    return tuple(found)


def _token_ids(body: Mapping[str, Any], name: str, most: int) -> tuple[int, ...]:
    found = items(body, name, most)
    if not all(map(is_token_id, found)):
        raise bad(name, "must be a list of token ids")
    return tuple(found)


def is_token_id(value: Any) -> bool:
    """Whether it could be a token's id; no vocabulary is that large."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def _logit_bias(body: Mapping[str, Any]) -> tuple[tuple[int, float], ...]:
    found = read(body, "logit_bias", dict, {})
    if len(found) > 1024:
        raise bad("logit_bias", f"has {len(found)} entries, at most 1024 are taken")
    for key in found:
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise bad("logit_bias", "must have token ids as its keys")
    values = {key: number({"logit_bias": value}, "logit_bias", None, -100, 100) for key, value in found.items()}
    if None in values.values():
        raise bad("logit_bias", "must have numbers as its values")
    return tuple((int(key), value) for key, value in values.items())


def stream_options(body: Mapping[str, Any]) -> tuple[bool, bool]:
    """(a last chunk with usage, usage on every chunk)."""
    options = read(body, "stream_options", dict, {})
    at = "stream_options."
    continuous = read(options, "continuous_usage_stats", bool, False, at=at)
    return read(options, "include_usage", bool, False, at=at) or continuous, continuous


def extras(body: Mapping[str, Any]) -> Extras:
    """What the client tells Baseload itself, in the object `baseload`."""
    found = read(body, "baseload", dict, {})
    known = {"checks", "allow_suppliers", *NAMED, "budget_usd"}
    if unknown := sorted(set(found) - known):
        raise bad("baseload", f"has an unknown key; known are {', '.join(sorted(known))}") from KeyError(unknown[0])
    checks = items(found, "checks", 16)
    if not all(isinstance(c, dict) and isinstance(c.get("type"), str) for c in checks):
        raise bad("baseload.checks", "must be objects with a 'type'")
    return Extras(
        tuple(checks),
        read(found, "allow_suppliers", bool, True, at="baseload."),
        budget_usd=number({"baseload.budget_usd": found.get("budget_usd")}, "baseload.budget_usd", None, 0, 1e6),
        **{name: _name(found, name) for name in NAMED},
    )


def _name(found: Mapping[str, Any], name: str) -> str:
    value = read(found, name, str, "", at="baseload.")
    if len(value) > MAX_NAME:
        raise bad(f"baseload.{name}", f"must have at most {MAX_NAME} characters")
    return value


def response_format(body: Mapping[str, Any]) -> ResponseFormat:
    """`response_format`, its schema bounded; or one of the fields that vLLM has for the same."""
    found = read(body, "response_format", dict)
    if found is None or found.get("type") == "text":
        return _structured_outputs(body)
    at, kind = "response_format.", read(found, "type", str, at="response_format.")
    if kind == "json_object":
        return ResponseFormat(kind)
    if kind != "json_schema":
        raise bad(at + "type", "must be text, json_object or json_schema")
    inner = read(found, "json_schema", dict, at=at)
    if inner is None:
        raise bad(at + "json_schema", "is missing")
    name = read(inner, "name", str, "output", at=at + "json_schema.")
    if not 0 < len(name) <= 64 or not all(c.isalnum() or c in "_-" for c in name):
        raise bad(at + "json_schema.name", "must be 1 to 64 letters, digits, underscores or dashes")
    where = at + "json_schema."
    found_schema = schema(read(inner, "schema", dict, {}, at=where), where + "schema")
    return ResponseFormat("json_schema", name, found_schema, read(inner, "strict", bool, False, at=where))


def _structured_outputs(body: Mapping[str, Any]) -> ResponseFormat:
    """vLLM's `structured_outputs: {json | regex | choice | grammar | json_object}` and its older `guided_json` and the like."""
    names = ("json", "regex", "choice", "grammar", "json_object")
    found = read(body, "structured_outputs", dict, {})
    given = {f"structured_outputs.{name}": (name, found[name]) for name in names if found.get(name) not in (None, False)}
    given |= {f"guided_{name}": (name, body[f"guided_{name}"]) for name in names if body.get(f"guided_{name}") is not None}
    if not given:
        return ResponseFormat()
    if len(given) > 1:
        raise bad(next(iter(given)), "stands beside another; an answer keeps to one form")
    [(at, (name, value))] = given.items()
    if name == "json_object":
        return ResponseFormat("json_object")
    if name == "json":
        if not isinstance(value, dict):
            raise bad(at, "must be a JSON schema, an object")
        return ResponseFormat("json_schema", schema=schema(value, at))
    if name == "choice":
        texts = value if isinstance(value, list) else []
        if not 0 < len(texts) <= MAX_CHOICES or not all(isinstance(text, str) and 0 < len(text) <= 4096 for text in texts):
            raise bad(at, f"must be a list of 1 to {MAX_CHOICES} strings")
        return ResponseFormat("choice", choices=tuple(texts))
    if not isinstance(value, str) or not 0 < len(value) <= MAX_PATTERN:
        raise bad(at, f"must be a string of 1 to {MAX_PATTERN} characters")
    return ResponseFormat("regex" if name == "regex" else "grammar", pattern=value)


def schema(value: Mapping[str, Any], param: str) -> Mapping[str, Any]:
    """A JSON schema of bearable size whose references stay inside it. Raises BadRequest."""
    if depth(value) > MAX_SCHEMA_DEPTH:
        raise bad(param, f"is nested deeper than {MAX_SCHEMA_DEPTH} levels")
    if len(json.dumps(value)) > MAX_SCHEMA_BYTES:
        raise bad(param, f"is larger than {MAX_SCHEMA_BYTES >> 10} kB")
    for reference in references(value):
        if not (isinstance(reference, str) and reference.startswith("#")):
            raise bad(param, "refers to another document; only references that start with # are taken")
    return value


def depth(value: Any) -> int:
    """How deep lists and objects are nested."""
    level, todo = 0, [value]
    while todo := [x for v in todo if isinstance(v, dict | list) for x in (v.values() if isinstance(v, dict) else v)]:
        level += 1
    return level


def references(value: Any) -> list[Any]:
    """Every `$ref` and `$dynamicRef` in a schema."""
    found, todo = [], [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            found += [item[key] for key in ("$ref", "$dynamicRef") if key in item]
            todo.extend(v for v in item.values() if isinstance(v, dict | list))
        elif isinstance(item, list):
            todo.extend(v for v in item if isinstance(v, dict | list))
    return found


def tools(body: Mapping[str, Any]) -> tuple[ToolSpec, ...]:
    """`tools`: functions with a name and a schema."""
    return tuple(_tool(tool, f"tools[{i}]") for i, tool in enumerate(items(body, "tools", 512)))


def _tool(tool: Any, at: str) -> ToolSpec:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise bad(at, "must be an object of type function")
    function = read(tool, "function", dict, at=at + ".")
    if function is None:
        raise bad(at + ".function", "is missing")
    at += ".function."
    return ToolSpec(
        name=tool_name(function, at),
        description=description(function, at),
        parameters=schema(read(function, "parameters", dict, {}, at=at), at + "parameters"),
        strict=read(function, "strict", bool, False, at=at),
    )


def tool_name(table: Mapping[str, Any], at: str) -> str:
    """A tool's or a namespace's `name`."""
    name = read(table, "name", str, at=at)
    if not name or len(name) > 128 or not all(c.isascii() and (c.isalnum() or c in "_-.") for c in name):
        raise bad(at + "name", "must be 1 to 128 letters, digits, underscores, dashes or dots")
    return name


def description(table: Mapping[str, Any], at: str) -> str:
    """A tool's `description`."""
    text = read(table, "description", str, "", at=at)
    if len(text) > MAX_DESCRIPTION:
        raise bad(at + "description", f"is longer than {MAX_DESCRIPTION} characters")
    return text


def tool_choice(body: Mapping[str, Any], specs: tuple[ToolSpec, ...]) -> str | Mapping[str, Any]:
    """`tool_choice`: auto, none, required, or one function by name."""
    found = body.get("tool_choice")
    if found is None:
        return "auto" if specs else "none"
    if found in ("auto", "none", "required") and isinstance(found, str):
        if found == "required" and not specs:
            raise bad("tool_choice", "is required, but there are no tools")
        return found
    name = found.get("function") if isinstance(found, dict) and found.get("type") == "function" else None
    name = name.get("name") if isinstance(name, dict) else None
    if not isinstance(name, str):
        raise bad("tool_choice", "must be auto, none, required or a function")
    if name not in {spec.name for spec in specs}:
        raise bad("tool_choice", "names a function that is not among the tools")
    return {"name": name}


def image(url: Any, at: str) -> Image:
    """An image from a `data:` URL. Addresses are refused: no request can make this machine fetch one."""
    if not isinstance(url, str):
        raise bad(at, "must be a string")
    head, comma, data = url.partition(",")
    if not head.startswith("data:image/") or not head.endswith(";base64") or not comma:
        raise bad(at, "must be a base64 data: URL of an image; addresses are not fetched")
    if len(data) * 3 // 4 > MAX_IMAGE_BYTES:
        raise bad(at, f"holds more than {MAX_IMAGE_BYTES >> 20} MB")
    try:
        return Image(head.removeprefix("data:").removesuffix(";base64"), base64.b64decode(data, validate=True))
    except (binascii.Error, ValueError) as error:
        raise bad(at, "is not valid base64") from error
