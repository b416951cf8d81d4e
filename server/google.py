"""Google's routes: generateContent, its stream, and the counting of tokens, under /v1 and /v1beta."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..wire import google_embeddings
from ..wire import google_generate as wire
from ..wire.backend import ModelInfo
from ..wire.embeddings import EmbeddingRequest
from ..wire.errors import NotFound
from .answering import Endpoint, answer, count
from .bodies import read_object
from .embeddings import booked, embedder
from .replies import json_reply
from .services import models_of
from .shapes import GOOGLE

routes = APIRouter()
ENDPOINT = Endpoint("", wire.render_response, wire.StreamRenderer, GOOGLE)


@routes.post("/v1/models/{name:path}")
@routes.post("/v1beta/models/{name:path}")
async def models_call(request: Request, name: str) -> Response:
    """`model:method`, as this protocol writes what is asked of whom."""
    model, _, method = name.rpartition(":")
    body = await read_object(request)
    match method:
        case "generateContent":
            return await answer(request, ENDPOINT, [wire.parse_request(body, model, False)])
        case "streamGenerateContent":
            return await answer(request, ENDPOINT, [wire.parse_request(body, model, True)])
        case "countTokens":
            return json_reply(wire.render_count(await count(request, wire.parse_count_request(body, model))))
        case "embedContent":
            ask = google_embeddings.parse_one(body, model)
            return json_reply(google_embeddings.render_one(ask, await _vectors(request, ask)))
        case "batchEmbedContents":
            ask = google_embeddings.parse_batch(body, model)
            return json_reply(google_embeddings.render_batch(ask, await _vectors(request, ask)))
        case _:
            raise NotFound("There is no such method.")


async def _vectors(request: Request, ask: EmbeddingRequest) -> Any:
    async with booked(request, ask.model, "google_embeddings") as used:
        vectors, tokens = await embedder(request, ask.model).embed(ask.inputs)
        used(tokens)
    return vectors


@routes.get("/v1beta/models")
async def list_models(request: Request) -> Response:
    """The names that a request may ask for."""
    return json_reply({"models": [model_object(info) for info in models_of(request)]})


def model_object(info: ModelInfo) -> dict[str, Any]:
    """A model as this protocol lists it."""
    limits = {"inputTokenLimit": info.context_length, "outputTokenLimit": info.context_length}
    methods = ["generateContent", "countTokens"]
    return {"name": f"models/{info.id}", "displayName": info.id, **limits, "supportedGenerationMethods": methods}
