"""Routes of the encoders: vectors, and documents in their order."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..wire import embeddings as wire
from ..wire.errors import ModelNotFound
from .bodies import read_object
from .logs import Notes
from .replies import json_reply
from .services import Embedder

routes = APIRouter()


@routes.post("/v1/embeddings")
async def embeddings(request: Request) -> Response:
    """Texts to vectors."""
    ask = wire.parse_embeddings(await read_object(request))
    vectors, tokens = await embedder(request, ask.model).embed(ask.inputs)
    _notes(request).prompt_tokens = tokens
    return json_reply(wire.render_embeddings(ask, vectors, tokens))


@routes.post("/v1/rerank")
@routes.post("/rerank")
async def rerank(request: Request) -> Response:
    """Documents in the order of their use for a query."""
    ask = wire.parse_rerank(await read_object(request))
    scores, method, tokens = await embedder(request, ask.model).rank(ask.query, ask.documents)
    notes = _notes(request)
    notes.prompt_tokens = tokens
    return json_reply(wire.render_rerank(ask, scores, method, f"rerank-{notes.request_id}", tokens))


def embedder(request: Request, name: str) -> Embedder:
    """The encoder of that name. Raises ModelNotFound."""
    found = request.app.state.life.require().embedders
    if name not in found:
        known = f"; there is {', '.join(found)}" if found else ": none is served (baseload serve --model NAME --model ENCODER)"
        raise ModelNotFound(f"There is no embedding model of this name{known}.", param="model")
    _notes(request).model = name
    return found[name]


def _notes(request: Request) -> Notes:
    return request.scope["state"]["notes"]
