"""Routes of the encoders: vectors, and documents in their order."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..ledger.rows import AttemptRow, RequestRow
from ..wire import embeddings as wire
from ..wire.errors import BaseloadError, ModelNotFound
from .bodies import read_object
from .callers import caller
from .logs import Notes
from .replies import json_reply
from .services import Embedder

routes = APIRouter()


@routes.post("/v1/embeddings")
async def embeddings(request: Request) -> Response:
    """Texts to vectors."""
    ask = wire.parse_embeddings(await read_object(request))
    async with booked(request, ask.model, "openai_embeddings") as used:
        vectors, tokens = await embedder(request, ask.model).embed(ask.inputs)
        used(tokens)
    return json_reply(wire.render_embeddings(ask, vectors, tokens))


@routes.post("/v1/rerank")
@routes.post("/rerank")
async def rerank(request: Request) -> Response:
    """Documents in the order of their use for a query."""
    ask = wire.parse_rerank(await read_object(request))
    async with booked(request, ask.model, "rerank") as used:
        scores, method, tokens = await embedder(request, ask.model).rank(ask.query, ask.documents)
        used(tokens)
    return json_reply(wire.render_rerank(ask, scores, method, f"rerank-{_notes(request).request_id}", tokens))


def embedder(request: Request, name: str) -> Embedder:
    """The encoder of that name. Raises ModelNotFound."""
    found = request.app.state.life.require().embedders
    if name not in found:
        names = [one for one in found if caller(request).scopes.may_ask(one)]
        known = f"; there is {', '.join(names)}" if names else ": none is served (baseload serve --model NAME --model ENCODER)"
        raise ModelNotFound(f"There is no embedding model of this name{known}.", param="model")
    caller(request).allow(name)
    _notes(request).model = name
    return found[name].of(caller(request).tenant)


@asynccontextmanager
async def booked(request: Request, model: str, protocol: str) -> AsyncIterator[Callable[[int], None]]:
    """The request with its one attempt stands in the books, however the block ends; the block says how many tokens it used."""
    notes, ledger, who = _notes(request), request.app.state.life.require().ledger, caller(request)
    began, tokens, error = time.time(), 0, "cancelled"

    def used(n: int) -> None:
        nonlocal tokens
        tokens = notes.prompt_tokens = n
        who.used(n)

    try:
        yield used
        error = ""
    except BaseloadError as failure:
        error = failure.code or failure.kind
        raise
    finally:
        ended = time.time()
        status = {"": "done", "cancelled": "cancelled"}.get(error, "failed")
        if ledger is not None:
            key, name = who.key_id, notes.request_id
            head = RequestRow(name, began, protocol, model, model, status=status, finished_ts=ended, key_id=key)
            ledger.add(replace(head, error_code=error or None))
            tried = AttemptRow(uuid.uuid4().hex, name, 0, "local", model, began, duration_s=ended - began, role="vector")
            ledger.add(replace(tried, prompt_tokens=tokens, accepted=not error, error=error or None))


def _notes(request: Request) -> Notes:
    return request.scope["state"]["notes"]
