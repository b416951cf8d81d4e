"""Routes that show how a model reads: text to token ids, and back."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..wire import tokens as wire
from .answering import named
from .bodies import read_object
from .callers import caller
from .replies import json_reply

routes = APIRouter()


@routes.post("/tokenize")
async def tokenize(request: Request) -> Response:
    """A prompt or a conversation to ids."""
    ask = wire.parse_tokenize(await read_object(request))
    services = request.app.state.life.require()
    chat = named(ask.chat, request)
    model = services.router.tokenizing(chat.model)
    ids = await asyncio.to_thread(model.token_ids, chat, begun=ask.begun, bare=ask.bare)
    strings = await asyncio.to_thread(lambda: [model.text_of([i]) for i in ids]) if ask.strings else None
    return json_reply(wire.render_tokenize(ids, model.models[0].context_length, strings))


@routes.post("/detokenize")
async def detokenize(request: Request) -> Response:
    """Ids to text."""
    ask = wire.parse_detokenize(await read_object(request))
    model = request.app.state.life.require().router.tokenizing(ask.model)
    caller(request).allow(ask.model)
    return json_reply(wire.render_detokenize(await asyncio.to_thread(model.text_of, ask.tokens)))
