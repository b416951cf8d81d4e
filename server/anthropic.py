"""Anthropic's routes: messages, and the counting of their tokens."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..wire import anthropic_messages as wire
from .answering import Endpoint, answer, count
from .bodies import read_object
from .replies import json_reply
from .shapes import ANTHROPIC

routes = APIRouter()
MESSAGES = Endpoint("msg_", wire.render_response, wire.StreamRenderer, ANTHROPIC)


@routes.post("/v1/messages")
async def messages(request: Request) -> Response:
    """A conversation, streamed or not."""
    return await answer(request, MESSAGES, [wire.parse_request(await read_object(request))])


@routes.post("/v1/messages/count_tokens")
async def count_tokens(request: Request) -> Response:
    """How long a conversation is, as the model reads it."""
    return json_reply(wire.render_count(await count(request, wire.parse_count_request(await read_object(request)))))
