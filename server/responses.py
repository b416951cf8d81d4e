"""OpenAI's Responses: made, kept for a while, continued, counted.

What is kept lies in memory, for the key that asked for it: a restart forgets it, and the oldest go when there are too many.
"""

from __future__ import annotations

import re
import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from ..wire import openai_responses as wire
from ..wire.chat import ChatRequest, Event, Finish, Message
from ..wire.errors import BadRequest, NotFound
from ..wire.responses_items import joined, parse_input, render_input
from .answering import Endpoint, answer, count
from .bodies import read_object
from .replies import json_reply
from .shapes import RESPONSES

MAX_KEPT, MAX_BYTES = 1000, 64 << 20
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
routes = APIRouter()


@dataclass(frozen=True, slots=True)
class Kept:
    """One answer, and the conversation that it stands at the end of."""

    response: Mapping[str, Any]
    asked: tuple[Message, ...]
    size: int

    @property
    def conversation(self) -> tuple[Message, ...]:
        """What a request that continues it begins with."""
        output = self.response["output"]
        return joined((*self.asked, *(parse_input(list(output)) if output else ())))


class Shelf:
    """The answers that are kept, by their owner's key and their id."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str | None, str], Kept] = OrderedDict()
        self._bytes = 0

    def keep(self, owner: str | None, response: Mapping[str, Any], asked: tuple[Message, ...]) -> None:
        """Keep an answer; the oldest make room."""
        size = len(orjson.dumps(response)) + sum(len(m.text) for m in asked)
        self._kept[owner, response["id"]] = Kept(response, asked, size)
        self._bytes += size
        while len(self._kept) > MAX_KEPT or self._bytes > MAX_BYTES:
            self._bytes -= self._kept.popitem(last=False)[1].size

    def find(self, owner: str | None, id: str) -> Kept:
        """Raises BadRequest for what is no id, NotFound."""
        if not _ID.fullmatch(id):
            raise BadRequest("This is not a response's id.", param="id")
        found = self._kept.get((owner, id))
        if found is None:
            raise NotFound("There is no such response; they are kept in memory, for a while.", param="id")
        return found

    def drop(self, owner: str | None, id: str) -> None:
        """Forget an answer. Raises as `find` does."""
        self._bytes -= self.find(owner, id).size
        del self._kept[owner, id]


class _Keeping(wire.StreamRenderer):
    """A renderer that puts what it has rendered on the shelf."""

    def __init__(self, shelf: Shelf, owner: str | None, asked: tuple[Message, ...], *named: Any) -> None:
        super().__init__(*named)
        self._shelf, self._owner, self._asked = shelf, owner, asked

    def events(self, event: Event) -> list[dict[str, Any]]:
        chunks = super().events(event)
        if isinstance(event, Finish):
            self._shelf.keep(self._owner, self.response, self._asked)
        return chunks


@routes.post("/v1/responses")
async def create(request: Request) -> Response:
    """An answer, streamed or not; kept unless `store` is false."""
    body = await read_object(request)
    shelf, owner = _shelf(request), request.app.state.key_id
    ask, own = _asked(body, shelf, owner)
    if body.get("store") is False:
        return await answer(request, Endpoint("resp_", wire.render_response, wire.StreamRenderer, RESPONSES), [ask])

    def render(whole: ChatRequest, events: Sequence[Event], id: str, created: int, model: str) -> dict[str, Any]:
        response = wire.render_response(whole, events, id, created, model)
        shelf.keep(owner, response, own)
        return response

    keeping = Endpoint("resp_", render, lambda *named: _Keeping(shelf, owner, own, *named), RESPONSES)
    return await answer(request, keeping, [ask])


@routes.post("/v1/responses/input_tokens")
async def input_tokens(request: Request) -> Response:
    """How long a request's input is, as the model reads it."""
    ask, _ = _asked(await read_object(request), _shelf(request), request.app.state.key_id)
    return json_reply({"object": "response.input_tokens", "input_tokens": await count(request, ask)})


@routes.get("/v1/responses/{id}")
async def retrieve(request: Request, id: str) -> Response:
    """An answer that is kept."""
    return json_reply(_shelf(request).find(request.app.state.key_id, id).response)


@routes.delete("/v1/responses/{id}")
async def delete(request: Request, id: str) -> Response:
    """Forget an answer."""
    _shelf(request).drop(request.app.state.key_id, id)
    return json_reply({"id": id, "object": "response", "deleted": True})


@routes.get("/v1/responses/{id}/input_items")
async def input_items(request: Request, id: str) -> Response:
    """What an answer was an answer to."""
    found = _shelf(request).find(request.app.state.key_id, id)
    listed = [{"id": f"item_{secrets.token_hex(8)}", **item} for item in render_input(found.asked, ())]
    ends = {"first_id": listed[0]["id"], "last_id": listed[-1]["id"]} if listed else {"first_id": None, "last_id": None}
    return json_reply({"object": "list", "data": listed, **ends, "has_more": False})


def _asked(body: dict[str, Any], shelf: Shelf, owner: str | None) -> tuple[ChatRequest, tuple[Message, ...]]:
    """The request after the response that it continues, and its conversation without this request's instructions."""
    before: tuple[Message, ...] = ()
    if (previous := body.get("previous_response_id")) is not None:
        if not isinstance(previous, str):
            raise BadRequest("'previous_response_id' must be a string.", param="previous_response_id")
        try:
            before = shelf.find(owner, previous).conversation
        except NotFound as error:
            message = "There is no such response to go on from; they are kept in memory, for a while."
            raise NotFound(message, param="previous_response_id", code="previous_response_not_found") from error
    ask = wire.parse_request(body, before)
    return ask, wire.parse_request({**body, "instructions": None}, before).messages if body.get(
        "instructions"
    ) else ask.messages


def _shelf(request: Request) -> Shelf:
    return request.app.state.responses
