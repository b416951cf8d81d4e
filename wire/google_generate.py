"""Google's generateContent, both directions, pure: https://ai.google.dev/api/generate-content.

We serve it: `parse_request`, `parse_count_request`, `render_response`, `StreamRenderer`. We call it: `render_request`,
`parse_response`, `StreamParser`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from . import fields
from .chat import ChatRequest, Effort, Failure, Message, ResponseFormat, SamplingParams, ToolSpec
from .errors import BaseloadError, overflow
from .fields import bad, integer, items, number, read
from .google_content import (
    MAX_CONTENTS,
    call_names,
    given,
    listed,
    needed,
    parse_contents,
    parse_schema,
    parse_system,
    pick,
    render_contents,
    snake,
)
from .google_stream import PROTOCOL, StreamParser, StreamRenderer, error_object, parse_response, render_response
from .openai_chat import model_name

__all__ = ["PROTOCOL", "StreamParser", "StreamRenderer", "parse_response", "render_response"]

PING = b"\n\n"  # an event of no lines: the vendor's SDK takes a comment for a broken chunk
CONFIG, CHOICE = "generationConfig", "toolConfig.functionCallingConfig"
MAX_STOPS = 5  # that a server of this protocol takes
LEVELS: dict[str, Effort | None] = {
    "MINIMAL": "minimal", "LOW": "low", "MEDIUM": "medium", "HIGH": "high", "XHIGH": "max", "THINKING_LEVEL_UNSPECIFIED": None,
}  # fmt: skip
# What Google's own translation of OpenAI's efforts says.
BUDGETS: dict[Effort, int] = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24_576, "max": 24_576}
_SIGNING = re.compile(r"gemini-(?![12]([.-]|$))")  # models that refuse a call in the history that bears no signature

# --------------------------------------------------------------------------------------------- a client's request, read


def parse_request(body: Mapping[str, Any], model: str, stream: bool) -> ChatRequest:
    """The request in a JSON object; the path has said its model and whether to stream. Raises BadRequest, naming the field."""
    contents = listed(body.get("contents"), "contents", MAX_CONTENTS)
    if not contents:
        raise bad("contents", "must be a list with at least one content")
    if pick(body, "cachedContent") is not None:
        raise bad("cachedContent", "names what was never kept here: send the whole conversation")
    config = given(body, CONFIG, dict, {})
    system = parse_system(pick(body, "systemInstruction"))
    specs, choice = _tool_choice(body, _tools(body))
    return ChatRequest(
        model=model_name({"model": model}),
        messages=(*((Message("system", system),) if system else ()), *parse_contents(contents)),
        sampling=_sampling(config),
        tools=specs,
        tool_choice=choice,
        response_format=_format(config),
        effort=_effort(config),
        stream=stream,
        include_usage=True,
        extras=fields.extras(body),
        protocol=PROTOCOL,
        body=body,
    )


def parse_count_request(body: Mapping[str, Any], model: str) -> ChatRequest:
    """The request of countTokens: contents, or a whole request. Raises BadRequest."""
    whole = given(body, "generateContentRequest", dict)
    return parse_request(body if whole is None else whole, model, stream=False)


def _sampling(config: Mapping[str, Any]) -> SamplingParams:
    names = ("temperature", "topP", "topK", "maxOutputTokens", "candidateCount", "seed", "presencePenalty", "frequencyPenalty",
             "logprobs", "stopSequences")  # fmt: skip
    at = {f"{CONFIG}.{name}": pick(config, name) for name in names}
    top_k = at[f"{CONFIG}.topK"]
    if isinstance(top_k, float) and top_k.is_integer():
        at[f"{CONFIG}.topK"] = int(top_k)  # so the vendor's SDK writes it
    stops = items(at, f"{CONFIG}.stopSequences", 64)
    if not all(isinstance(s, str) and 0 < len(s) <= 1024 for s in stops):
        raise bad(f"{CONFIG}.stopSequences", "must be a list of strings, each of 1 to 1024 characters")
    wanted = given(config, "responseLogprobs", bool, False, at=f"{CONFIG}.")
    top = integer(at, f"{CONFIG}.logprobs", None, 0, 20)
    if top and not wanted:
        raise bad(f"{CONFIG}.logprobs", "needs responseLogprobs to be true")
    return SamplingParams(
        temperature=number(at, f"{CONFIG}.temperature", 1.0, 0, 2),
        top_p=number(at, f"{CONFIG}.topP", 1.0, 0, 1, above=True),
        top_k=integer(at, f"{CONFIG}.topK", 0, 0, 1 << 31),
        presence_penalty=number(at, f"{CONFIG}.presencePenalty", 0.0, -2, 2),
        frequency_penalty=number(at, f"{CONFIG}.frequencyPenalty", 0.0, -2, 2),
        seed=integer(at, f"{CONFIG}.seed", None, -(2**63), 2**63 - 1),
        max_tokens=integer(at, f"{CONFIG}.maxOutputTokens", None, 1, 1 << 31),
        stop=tuple(stops),
        logprobs=(top or 0) if wanted else None,
        n=integer(at, f"{CONFIG}.candidateCount", 1, 1, 128),
    )


def _tools(body: Mapping[str, Any]) -> tuple[ToolSpec, ...]:
    """The functions; a tool that the vendor runs itself does not exist here."""
    specs: list[ToolSpec] = []
    for i, tool in enumerate(listed(body.get("tools"), "tools", 512)):
        if not isinstance(tool, dict):
            raise bad(f"tools[{i}]", "must be an object")
        at = f"tools[{i}].functionDeclarations"
        specs += [_tool(one, f"{at}[{j}]") for j, one in enumerate(listed(pick(tool, "functionDeclarations"), at, 512))]
    if len(specs) > 512:
        raise bad("tools", f"declares {len(specs)} functions, at most 512 are taken")
    return tuple(specs)


def _tool(tool: Any, at: str) -> ToolSpec:
    if not isinstance(tool, dict):
        raise bad(at, "must be an object")
    name = needed(tool, "name", at)
    if len(name) > 128 or not all(c.isascii() and (c.isalnum() or c in "_-.:") for c in name):
        raise bad(f"{at}.name", "must be 1 to 128 letters, digits, underscores, dashes, dots or colons")
    description = read(tool, "description", str, "", at=f"{at}.")
    if len(description) > fields.MAX_DESCRIPTION:
        raise bad(f"{at}.description", f"is longer than {fields.MAX_DESCRIPTION} characters")
    schema = given(tool, "parametersJsonSchema", dict, at=f"{at}.")
    if schema is not None:
        return ToolSpec(name, description, fields.schema(schema, f"{at}.parametersJsonSchema"))
    return ToolSpec(name, description, parse_schema(read(tool, "parameters", dict, {}, at=f"{at}."), f"{at}.parameters"))


def _tool_choice(body: Mapping[str, Any], specs: tuple[ToolSpec, ...]) -> tuple[tuple[ToolSpec, ...], str | Mapping[str, Any]]:
    """The functions that may be called, and which of them must be."""
    config = given(given(body, "toolConfig", dict, {}), "functionCallingConfig", dict, {}, at="toolConfig.")
    mode = (read(config, "mode", str, at=f"{CHOICE}.") or "AUTO").upper()
    if mode not in ("AUTO", "ANY", "NONE", "VALIDATED", "MODE_UNSPECIFIED"):
        raise bad(f"{CHOICE}.mode", "must be AUTO, ANY, NONE or VALIDATED")
    names = items({"allowed": pick(config, "allowedFunctionNames")}, "allowed", 512)
    if unknown := [name for name in names if name not in [spec.name for spec in specs]]:
        raise bad(f"{CHOICE}.allowedFunctionNames", "names a function that is not declared") from KeyError(str(unknown[0]))
    if mode == "ANY" and not specs:
        raise bad(f"{CHOICE}.mode", "asks for a function, but none is declared")
    if mode == "NONE" or not specs:
        return specs, "none"
    allowed = tuple(spec for spec in specs if spec.name in names) or specs
    if mode != "ANY":
        return allowed, "auto"
    return (specs, {"name": names[0]}) if len(allowed) == 1 and names else (allowed, "required")


def _format(config: Mapping[str, Any]) -> ResponseFormat:
    media = given(config, "responseMimeType", str, at=f"{CONFIG}.")
    if media not in (None, "", "text/plain", "application/json", "text/x.enum"):
        raise bad(f"{CONFIG}.responseMimeType", "must be text/plain, application/json or text/x.enum")
    plain = given(config, "responseJsonSchema", dict, at=f"{CONFIG}.")
    own = given(config, "responseSchema", dict, at=f"{CONFIG}.")
    if media == "text/x.enum":
        choices = own.get("enum") if own else None
        if not isinstance(choices, list) or not 0 < len(choices) <= fields.MAX_CHOICES:
            raise bad(f"{CONFIG}.responseSchema", f"must have an enum of 1 to {fields.MAX_CHOICES} strings")
        if not all(isinstance(choice, str) and 0 < len(choice) <= 4096 for choice in choices):
            raise bad(f"{CONFIG}.responseSchema.enum", "must be strings of 1 to 4096 characters")
        return ResponseFormat("choice", choices=tuple(choices))
    if plain is None and own is None:
        return ResponseFormat("json_object" if media == "application/json" else "text")
    if media == "text/plain":
        raise bad(f"{CONFIG}.responseMimeType", "must be application/json beside a schema")
    if plain is not None:
        return ResponseFormat("json_schema", schema=fields.schema(plain, f"{CONFIG}.responseJsonSchema"), strict=True)
    return ResponseFormat("json_schema", schema=parse_schema(own, f"{CONFIG}.responseSchema"), strict=True)


def _effort(config: Mapping[str, Any]) -> Effort | None:
    at = f"{CONFIG}.thinkingConfig"
    thinking = given(config, "thinkingConfig", dict, {}, at=f"{CONFIG}.")
    given(thinking, "includeThoughts", bool, at=f"{at}.")
    level = given(thinking, "thinkingLevel", str, at=f"{at}.")
    budget = integer({f"{at}.thinkingBudget": pick(thinking, "thinkingBudget")}, f"{at}.thinkingBudget", -1, -1, 1 << 31)
    if level is not None:
        if level.upper() not in LEVELS:
            raise bad(f"{at}.thinkingLevel", "must be MINIMAL, LOW, MEDIUM, HIGH or XHIGH")
        return LEVELS[level.upper()]
    if budget < 0:
        return None  # as much as the model thinks right
    if budget == 0:
        return "none"
    return "low" if budget <= BUDGETS["low"] else "medium" if budget <= BUDGETS["medium"] else "high"


# --------------------------------------------------------------------------------------------- our answer, written


def render_count(n: int) -> dict[str, Any]:
    """The answer of countTokens."""
    return {"totalTokens": n}


def render_error(error: BaseloadError) -> dict[str, Any]:
    """An error in Google's shape."""
    return error_object(error.status, _words(error.message, error.code), error.code, error.param, error.retry_after)


def render_failure(failure: Failure) -> dict[str, Any]:
    """A stream's bad end in the same shape."""
    return error_object(failure.status, _words(failure.message, failure.code), failure.code, None, failure.retry_after)


def _words(message: str, code: str | None) -> str:
    """An overflow in the words by which this protocol's clients know it."""
    numbers = overflow(message, code)
    if numbers is None:
        return message
    return f"The input token count ({numbers[0]}) exceeds the maximum number of tokens allowed ({numbers[1]})."


# --------------------------------------------------------------------------------------------- our request, written


def path(model: str) -> str:
    """Where a server of this protocol is asked, after its base URL."""
    return f"/v1beta/models/{quote(model, safe='')}:streamGenerateContent?alt=sse"


def headers(api_key: str | None) -> dict[str, str]:
    """What a call carries."""
    return {"x-goog-api-key": api_key} if api_key else {}


def render_request(request: ChatRequest, model: str, drop: Sequence[str] = ()) -> dict[str, Any]:
    """The request as a body for a server of this protocol; `path` says the rest.

    A request that came in by this protocol keeps every field it came with but Baseload's own and those of `drop`, also within
    generationConfig; messages that were added, as an escalation does, follow its own. Any other carries its neutral meaning.
    """
    signed = bool(_SIGNING.search(model))
    body = _kept(request, signed) if request.protocol == PROTOCOL else _meaning(request, signed)
    for name in ("baseload", "model", *drop):
        body.pop(name, None)
        body.pop(snake(name), None)
    for name in (CONFIG, snake(CONFIG)):
        if drop and isinstance(body.get(name), dict):
            kept = {key: value for key, value in body[name].items() if key not in drop and key not in map(snake, drop)}
            body = {**body, name: kept} if kept else {key: value for key, value in body.items() if key != name}
    return body


def _kept(request: ChatRequest, signed: bool) -> dict[str, Any]:
    body, own = dict(request.body), parse_request(request.body, request.model, request.stream).messages
    if request.messages[: len(own)] == own:
        more = render_contents(request.messages[len(own) :], call_names(request.messages), signed)
        return body | {"contents": [*listed(body["contents"], "contents", MAX_CONTENTS), *more]} if more else body
    for name in ("systemInstruction", snake("systemInstruction")):
        body.pop(name, None)
    return body | _conversation(request, signed)


def _conversation(request: ChatRequest, signed: bool) -> dict[str, Any]:
    head = 0
    while head < len(request.messages) and request.messages[head].role in ("system", "developer"):
        head += 1
    system = [part for turn in request.messages[:head] for part in _instructions(turn)]
    contents = render_contents(request.messages[head:], call_names(request.messages), signed)
    return {"contents": contents, **({"systemInstruction": {"parts": system}} if system else {})}


def _instructions(message: Message) -> list[dict[str, Any]]:
    return [part for turn in render_contents([replace(message, role="user")], {}, False) for part in turn["parts"]]


def _meaning(request: ChatRequest, signed: bool) -> dict[str, Any]:
    p, body = request.sampling, _conversation(request, signed)
    if len(p.stop) > MAX_STOPS:
        raise bad("stop", f"has {len(p.stop)} strings; this supplier's protocol has at most {MAX_STOPS}")
    optional = {
        # What the client left at its default is the model's own to say.
        "temperature": p.temperature if p.temperature != 1 else None,
        "topP": p.top_p if p.top_p != 1 else None,
        "topK": p.top_k or None,
        "maxOutputTokens": p.max_tokens,
        "stopSequences": list(p.stop) or None,
        "candidateCount": p.n if p.n > 1 else None,
        "seed": p.seed & 0x7FFFFFFF if p.seed is not None else None,  # 32 bits, there
        "presencePenalty": p.presence_penalty or None,
        "frequencyPenalty": p.frequency_penalty or None,
        "responseLogprobs": True if p.logprobs is not None else None,
        "logprobs": p.logprobs or None,
        **_form(request.response_format),
        "thinkingConfig": _thinking(request.effort),
    }
    config = {name: value for name, value in optional.items() if value is not None}
    tools = [_declaration(tool) for tool in request.tools]
    body |= {CONFIG: config} if config else {}
    body |= {"tools": [{"functionDeclarations": tools}]} if tools else {}
    if tools and request.tool_choice != "auto":
        names = {"allowedFunctionNames": [request.tool_choice["name"]]} if isinstance(request.tool_choice, Mapping) else {}
        mode = "NONE" if request.tool_choice == "none" else "ANY"
        body["toolConfig"] = {"functionCallingConfig": {"mode": mode, **names}}
    return json.loads(json.dumps(body))


def _form(form: ResponseFormat) -> dict[str, Any]:
    match form.kind:
        case "json_object":
            return {"responseMimeType": "application/json"}
        case "json_schema":
            return {"responseMimeType": "application/json", "responseJsonSchema": form.schema or {"type": "object"}}
        case "choice":
            return {"responseMimeType": "text/x.enum", "responseSchema": {"type": "STRING", "enum": list(form.choices)}}
        case _:
            return {}


def _thinking(effort: Effort | None) -> dict[str, Any] | None:
    if effort is None:
        return None
    return {"thinkingBudget": BUDGETS[effort], **({"includeThoughts": True} if effort != "none" else {})}


def _declaration(tool: ToolSpec) -> dict[str, Any]:
    schema = {"parametersJsonSchema": tool.parameters} if tool.parameters else {}
    return {"name": tool.name, **({"description": tool.description} if tool.description else {}), **schema}
