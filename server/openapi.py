"""The OpenAPI document: what each path takes and gives, for people and for tools that read such a document.

Bodies are described as far as their parsers in wire/ check them; fields that those don't know are taken and left alone,
as the vendors' own servers do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from .replies import json_reply
from .shapes import ANTHROPIC, GOOGLE, OLLAMA, shape_of

routes = APIRouter()
Schema = dict[str, Any]


def _or_null(kind: str, **more: Any) -> Schema:
    return {"type": [kind, "null"], **more}


def _number(low: float, high: float) -> Schema:
    return _or_null("number", minimum=low, maximum=high)


def _share() -> Schema:
    return _or_null("number", exclusiveMinimum=0, maximum=1)


def _integer(low: int, high: int = 1 << 31) -> Schema:
    return _or_null("integer", minimum=low, maximum=high)


def _list(of: Schema, most: int, least: int = 0) -> Schema:
    return {"type": "array", "items": of, "minItems": least, "maxItems": most}


def _object(required: Iterable[str] = (), **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required)}


FLAG, WORD, TABLE, COUNT = _or_null("boolean"), _or_null("string"), _or_null("object"), _integer(1)
MODEL = {"type": "string", "minLength": 1, "maxLength": 256}
TEXT = {"type": "string", "minLength": 1, "maxLength": 1 << 20}
STOP = {"type": "string", "minLength": 1, "maxLength": 1024}
IDS = _list({"type": "integer", "minimum": 0, "maximum": (1 << 31) - 1}, 1 << 20)
TOOL = _object(["function"], type={"const": "function"}, function=_object(["name"], name=STOP, description=WORD))
BASELOAD = _or_null("object", properties={"checks": _list(_object(["type"], type={"type": "string"}), 16)})
STREAM = {"stream": FLAG, "stream_options": _or_null("object", properties={"include_usage": FLAG})}
SAMPLING = {
    "temperature": _number(0, 2),
    "top_p": _share(),
    "top_k": _integer(-1),
    "min_p": _number(0, 1),
    "repetition_penalty": _or_null("number", exclusiveMinimum=0, maximum=10),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "seed": _integer(-(2**63), 2**63 - 1),
    "max_tokens": COUNT,
    "min_tokens": _integer(0),
    "stop": {"anyOf": [{"type": "null"}, STOP, _list(STOP, 16)]},
    "ignore_eos": FLAG,
    "n": _integer(1, 128),
}
PART = {
    "oneOf": [
        _object(["type", "text"], type={"const": "text"}, text={"type": "string"}),
        _object(["type"], type={"not": {"const": "text"}}),
    ]
}
CONTENT = {"anyOf": [{"type": "string"}, _list(PART, 1 << 16)]}
ROLES = ["system", "developer", "user", "assistant", "tool"]
MESSAGE = _object(["role"], role={"enum": ROLES}, content={"anyOf": [{"type": "null"}, CONTENT]})
FORMAT = _or_null("object", properties={"type": {"enum": ["text", "json_object", "json_schema"]}}, required=["type"])
CHAT = _object(
    ["model", "messages"], model=MODEL, messages=_list(MESSAGE, 100_000, 1), tools={"type": ["array", "null"], "items": TOOL},
    parallel_tool_calls=FLAG, max_completion_tokens=COUNT, logprobs=FLAG, top_logprobs=_integer(0, 20), user=WORD,
    response_format=FORMAT, baseload=BASELOAD, **SAMPLING, **STREAM,
)  # fmt: skip
TURN = _object(["role", "content"], role={"enum": ["user", "assistant", "system"]}, content=CONTENT)
TURN_OF_PARTS = _object(
    role={"enum": ["user", "model", "", None]},
    parts={"anyOf": [{"type": "null"}, _list(_object(text={"type": "string"}), 1 << 16)]},
)
CLAUDES = {
    "model": MODEL, "messages": _list(TURN, 100_000, 1),
    "temperature": _number(0, 1), "top_p": _share(), "top_k": _integer(0), "stop_sequences": _or_null("array", items=STOP),
    "stream": FLAG, "metadata": TABLE, "thinking": TABLE, "output_config": TABLE,
}  # fmt: skip
GOOGLES = _object(["contents"], contents=_list(TURN_OF_PARTS, 100_000, 1), generationConfig=TABLE)
RESPONSE = _object(
    ["model", "input"], model=MODEL, input={"type": ["string", "array"]}, instructions=WORD, stream=FLAG, store=FLAG,
    previous_response_id=WORD, temperature=_number(0, 2), top_p=_share(), max_output_tokens=COUNT, parallel_tool_calls=FLAG,
    top_logprobs=_integer(0, 20), reasoning=TABLE, text=TABLE, tools=_or_null("array"), include=_or_null("array"),
)  # fmt: skip
OLLAMAS = {"model": MODEL, "stream": FLAG, "options": TABLE, "tools": {"type": ["array", "null"], "items": TOOL}}
BODIES: Mapping[str, Schema] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": _object(
        ["model", "prompt"], model=MODEL, prompt={"type": ["string", "array"]}, echo=FLAG, user=WORD, logprobs=_integer(0, 20),
        **SAMPLING, **STREAM,
    ),
    "/v1/responses": RESPONSE,
    "/v1/responses/input_tokens": RESPONSE,
    "/v1/messages": _object(["model", "messages", "max_tokens"], max_tokens=COUNT | {"type": "integer"}, **CLAUDES),
    "/v1/messages/count_tokens": _object(["model", "messages"], **CLAUDES),
    "/v1beta/models/{name}:generateContent": GOOGLES,
    "/v1beta/models/{name}:streamGenerateContent": GOOGLES,
    "/v1beta/models/{name}:countTokens": GOOGLES,
    "/v1beta/models/{name}:embedContent": (embed := _object(
        ["content"], content=_object(["parts"], parts=_list(_object(["text"], text=TEXT), 100, 1)),
        outputDimensionality=_integer(1, 65_536),
    )),
    "/v1beta/models/{name}:batchEmbedContents": _object(["requests"], requests=_list(embed, 2048, 1)),
    "/v1/embeddings": _object(
        ["model", "input"], model=MODEL, input={"anyOf": [TEXT, _list(TEXT, 2048, 1), IDS | {"minItems": 1}]},
        encoding_format={"enum": ["float", "base64", None]}, dimensions=_integer(1, 65_536), user=WORD,
    ),
    "/v1/rerank": (rerank := _object(
        ["model", "query", "documents"], model=MODEL, query=TEXT, top_n=COUNT, return_documents=FLAG,
        documents=_list({"anyOf": [TEXT, _object(["text"], text=TEXT)]}, 2048, 1),
    )),
    "/rerank": rerank,
    "/tokenize": {"anyOf": [
        _object(["model", "prompt"], model=MODEL, prompt={"type": "string"}, add_special_tokens=FLAG, return_token_strs=FLAG),
        _object(["model", "messages"], model=MODEL, messages=_list(MESSAGE, 100_000, 1), add_generation_prompt=FLAG),
    ]},
    "/v1/feedback": _object(
        ["request_id"], request_id={"type": "string", "minLength": 1, "maxLength": 128}, accepted=FLAG, score=_number(0, 1),
        comment=_or_null("string", maxLength=4000), source={"enum": ["feedback", "review", "audit", None]},
    ),
    "/v1/replicas": _object(["name", "drain"], name=TEXT, model=WORD, drain={"type": "boolean"}),
    "/detokenize": _object(["model", "tokens"], model=MODEL, tokens=IDS),
    "/api/chat": _object(["model", "messages"], messages=_list(MESSAGE, 10_000, 1), **OLLAMAS),
    "/api/generate": _object(["model", "prompt"], prompt=TEXT, system=WORD, raw=FLAG, **OLLAMAS),
    "/api/embed": _object(["model", "input"], model=MODEL, input={"anyOf": [TEXT, _list(TEXT, 2048, 1)]}),
    "/api/show": _object(["model"], model=MODEL),
}  # fmt: skip
STREAMED = ("/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", ":streamGenerateContent")
# What its clients write behind a model's name.
METHODS = {
    "/v1beta/models/{name}": (
        ":generateContent",
        ":streamGenerateContent",
        ":countTokens",
        ":embedContent",
        ":batchEmbedContents",
    )
}
WORDS = {"code": {"type": ["string", "integer", "null"]}, "message": {"type": "string"}, "type": WORD}
ERRORS = {
    "Anthropic": _object(["type", "error"], type={"const": "error"}, error=_object(["type", "message"], **WORDS)),
    "Google": _object(["error"], error=_object(["code", "message", "status"], **(WORDS | {"status": {"type": "string"}}))),
    "Ollama": _object(["error"], error={"type": "string"}),
    "OpenAI": _object(["error"], error=_object(["message", "type", "param", "code"], **(WORDS | {"param": WORD}))),
}
NAMES = {ANTHROPIC: "Anthropic", GOOGLE: "Google", OLLAMA: "Ollama"}
KNOWN = {
    400: "The request cannot be right", 401: "No key, or an unknown one", 402: "The budget is spent", 403: "It may not be done",
    404: "There is no such path, model or answer", 405: "The method is not allowed", 408: "The body did not come in time",
    413: "The body is too large", 415: "The body is not JSON", 429: "Too many requests", 500: "A fault of ours",
    502: "A supplier's fault", 503: "Starting, draining or out of reach", 504: "A supplier did not answer in time",
}  # fmt: skip


@routes.get("/openapi.json")
async def openapi(request: Request) -> Response:
    """This document."""
    return json_reply(document(request.app.routes))


def document(app_routes: Iterable[Any]) -> Schema:
    """The document of these routes."""
    paths: dict[str, Schema] = {}
    for route in _flat(app_routes):
        path = route.path.replace(":path}", "}")
        for method in sorted(route.methods or ()):
            for end in METHODS.get(path, ("",)):
                paths.setdefault(path + end, {})[method.lower()] = _operation(route, path + end, method)
    info = {"title": "Baseload", "version": "1", "description": "Local models first, suppliers where they are needed."}
    wrong = {
        f"{name}{status}": {"description": words, "content": _json(error)}
        for name, error in ERRORS.items()
        for status, words in KNOWN.items()
    }
    components = {"responses": wrong, "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": components}


def _flat(found: Iterable[Any]) -> Iterator[APIRoute]:
    for route in found:
        if isinstance(route, APIRoute):
            yield route
        else:
            yield from _flat(route.original_router.routes)


def _operation(route: APIRoute, path: str, method: str) -> Schema:
    shape = NAMES.get(shape_of(path), "OpenAI")
    wrong = {str(status): {"$ref": f"#/components/responses/{shape}{status}"} for status in KNOWN}
    made = _operation_head(route, method, path)
    if method == "POST":
        made["requestBody"] = {"required": True, "content": _json(BODIES.get(path, {"type": "object"}))}
    return made | {"responses": {"200": {"description": "OK", "content": _answers(path)}, **wrong}}


def _operation_head(route: APIRoute, method: str, path: str) -> Schema:
    name, names = re.sub(r"\W+", "_", path).strip("_"), re.findall(r"{(\w+)}", path)
    given = [
        {"name": n, "in": "path", "required": True, "schema": MODEL if n == "name" else {"type": "string", "minLength": 1}}
        for n in names
    ]
    return {"operationId": f"{method.lower()}_{name}", "summary": (route.description or "").split("\n")[0], "parameters": given}


def _answers(path: str) -> Schema:
    if path == "/metrics":
        return {"text/plain": {"schema": {"type": "string"}}}
    if path.startswith("/console") and "/data/" not in path:
        kinds = ("text/html", "text/css", "text/javascript", "image/svg+xml") if "{" in path else ("text/html",)
        return {kind: {"schema": {"type": "string"}} for kind in kinds}
    if shape_of(path) is OLLAMA:
        return _json({"type": "object"}) | {"application/x-ndjson": {"schema": {}}}
    return _json({"type": "object"}) | ({"text/event-stream": {"schema": {}}} if path.endswith(STREAMED) else {})


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}
