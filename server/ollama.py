"""Ollama's routes, for the tools that speak nothing else."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..wire import embeddings
from ..wire import ollama as wire
from ..wire.backend import ModelInfo
from ..wire.errors import ModelNotFound
from .answering import Endpoint, answer
from .bodies import read_object
from .embeddings import booked, embedder
from .replies import json_reply
from .services import models_of
from .shapes import OLLAMA

routes = APIRouter()
ENDPOINT = Endpoint("", wire.render_response, wire.StreamRenderer, OLLAMA)


@routes.post("/api/chat")
async def chat(request: Request) -> Response:
    """A conversation."""
    return await answer(request, ENDPOINT, [wire.parse_chat(await read_object(request))])


@routes.post("/api/generate")
async def generate(request: Request) -> Response:
    """One prompt."""
    return await answer(request, ENDPOINT, [wire.parse_generate(await read_object(request))])


@routes.post("/api/embed")
async def embed(request: Request) -> Response:
    """Texts to vectors."""
    body = await read_object(request)
    ask = embeddings.parse_embeddings({"model": wire.name_of(body), "input": body.get("input")})
    async with booked(request, ask.model, "ollama_embed") as used:
        vectors, tokens = await embedder(request, ask.model).embed(ask.inputs)
        used(tokens)
    return json_reply({"model": ask.model, "embeddings": vectors.tolist(), "prompt_eval_count": tokens})


@routes.get("/api/tags")
@routes.get("/api/ps")
async def tags(request: Request) -> Response:
    """The models that may be asked for."""
    return json_reply({"models": [_listed(info) for info in models_of(request)]})


@routes.post("/api/show")
async def show(request: Request) -> Response:
    """One of them."""
    name = wire.name_of(await read_object(request))
    info = next((info for info in models_of(request) if info.id == name), None)
    if info is None:
        raise ModelNotFound(f"model {name[:80]!r} not found", param="model")
    able = ["completion", *(["tools"] if info.local or info.tools else []), *(["vision"] if info.vision else [])]
    model_info = {"general.architecture": "baseload", "baseload.context_length": info.context_length}
    return json_reply({"details": _details(), "model_info": model_info, "capabilities": able})


@routes.get("/api/version")
async def version(request: Request) -> Response:
    """Which version of the API this is."""
    return json_reply({"version": wire.VERSION})


def _listed(info: ModelInfo) -> dict[str, Any]:
    when = {"modified_at": "1970-01-01T00:00:00Z", "size": 0, "digest": ""}
    return {"name": info.id, "model": info.id, **when, "details": _details()}


def _details() -> dict[str, Any]:
    return {"format": "gguf", "family": "", "families": [], "parameter_size": "", "quantization_level": ""}
