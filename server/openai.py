"""OpenAI's routes of chats, completions and models."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..wire import openai_chat, openai_completions
from ..wire.backend import ModelInfo
from ..wire.errors import ModelNotFound
from . import google
from .answering import Endpoint, answer
from .bodies import read_object
from .replies import json_reply
from .services import models_of

routes = APIRouter()
CHAT = Endpoint("chatcmpl-", openai_chat.render_response, openai_chat.StreamRenderer)
COMPLETIONS = Endpoint("cmpl-", openai_completions.render_response, openai_completions.StreamRenderer)


@routes.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    """Chat, streamed or not."""
    return await answer(request, CHAT, [openai_chat.parse_request(await read_object(request))])


@routes.post("/v1/completions")
async def completions(request: Request) -> Response:
    """Plain completions; several prompts run at once."""
    return await answer(request, COMPLETIONS, openai_completions.parse_completion_request(await read_object(request)))


@routes.get("/v1/models")
async def list_models(request: Request) -> Response:
    """The names that a request may ask for; Google's clients, who know the path too, read them under a name of their own."""
    if "x-goog-api-key" in request.headers:
        return await google.list_models(request)
    return json_reply({"object": "list", "data": [_model(info) for info in models_of(request)]})


@routes.get("/v1/models/{name:path}")
async def get_model(request: Request, name: str) -> Response:
    """One of them."""
    for info in models_of(request):
        if info.id == name:
            return json_reply(google.model_object(info) if "x-goog-api-key" in request.headers else _model(info))
    raise ModelNotFound("There is no such model.", param="model")


def _model(info: ModelInfo) -> dict[str, Any]:
    # `max_model_len` is vLLM's word for it; agents read it.
    return {
        "id": info.id,
        "object": "model",
        "created": info.created,
        "owned_by": info.owned_by,
        "max_model_len": info.context_length,
    }
