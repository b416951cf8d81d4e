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
from starlette.types import Message as Sent
from starlette.types import Receive, Scope, Send

from ..wire import openai_responses as wire
from ..wire import sse
from ..wire.chat import Block, ChatRequest, Event, Finish, Image, Message, Reasoning, Text, ToolCall, ToolReference, ToolResult
from ..wire.errors import BadRequest, NotFound
from ..wire.responses_items import joined, parse_input, render_input
from .answering import Endpoint, answer, count
from .bodies import read_object
from .callers import caller
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
        size = len(orjson.dumps(response)) + sum(_size(block) for message in asked for block in message.content)
        before = self._kept.pop((owner, response["id"]), None)
        self._kept[owner, response["id"]] = Kept(response, asked, size)
        self._bytes += size - (before.size if before else 0)
        while len(self._kept) > MAX_KEPT or self._bytes > MAX_BYTES:
            self._bytes -= self._kept.popitem(last=False)[1].size

    def find(self, owner: str | None, id: str, param: str = "id") -> Kept:
        """Raises BadRequest for what is no id, NotFound."""
        if not _ID.fullmatch(id):
            raise BadRequest(f"'{param}' is not a response's id.", param=param)
        found = self._kept.get((owner, id))
        if found is None:
            raise NotFound("There is no such response; they are kept in memory, for a while.", param=param)
        return found

    def items(self, owner: str | None) -> dict[str, Mapping[str, Any]]:
        """All that was put out, by its id: a client may refer to it."""
        return {item["id"]: item for (key, _), kept in self._kept.items() if key == owner for item in kept.response["output"]}

    def drop(self, owner: str | None, id: str) -> None:
        """Forget an answer. Raises as `find` does."""
        self._bytes -= self.find(owner, id).size
        del self._kept[owner, id]


def _size(block: Block | ToolReference) -> int:
    """What a block holds, roughly in bytes."""
    match block:
        case Image():
            return len(block.data)
        case ToolResult():
            return sum(_size(part) for part in block.content)
        case ToolCall():
            return len(block.arguments)
        case Text() | Reasoning():
            return len(block.text)
        case _:
            return 0


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


class _Opened(Response):
    """A stream whose first sign of life comes after its first chunks: OpenAI's SDK takes nothing before `response.created`."""

    def __init__(self, stream: Response, renderer: wire.StreamRenderer) -> None:
        self._stream, self._renderer = stream, renderer
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def opened(sent: Sent) -> None:
            if sent.get("body") == wire.PING:
                sent["body"] = b"".join(map(sse.named_event, self._renderer.begin())) + wire.PING
            await send(sent)

        await self._stream(scope, receive, opened)


@routes.post("/v1/responses")
async def create(request: Request) -> Response:
    """An answer, streamed or not; kept unless `store` is false."""
    body = await read_object(request)
    shelf, owner = _shelf(request), caller(request).key_id
    ask, own = _asked(body, shelf, owner)
    is_kept = body.get("store") is not False
    renderers: list[wire.StreamRenderer] = []

    def stream(*named: Any) -> wire.StreamRenderer:
        renderers.append(_Keeping(shelf, owner, own, *named) if is_kept else wire.StreamRenderer(*named))
        return renderers[-1]

    def render(whole: ChatRequest, events: Sequence[Event], id: str, created: int, model: str) -> dict[str, Any]:
        response = wire.render_response(whole, events, id, created, model)
        if is_kept:
            shelf.keep(owner, response, own)
        return response

    response = await answer(request, Endpoint("resp_", render, stream, RESPONSES), [ask])
    return _Opened(response, renderers[0]) if renderers else response


@routes.post("/v1/responses/input_tokens")
async def input_tokens(request: Request) -> Response:
    """How long a request's input is, as the model reads it."""
    ask, _ = _asked(await read_object(request), _shelf(request), caller(request).key_id)
    return json_reply({"object": "response.input_tokens", "input_tokens": await count(request, ask)})


@routes.post("/v1/responses/compact")
async def compact(request: Request) -> Response:
    """Not served; without a route of its own it would seem to be an answer's id."""
    raise NotFound("There is no such path.")


@routes.get("/v1/responses/{id}")
async def retrieve(request: Request, id: str) -> Response:
    """An answer that is kept."""
    return json_reply(_shelf(request).find(caller(request).key_id, id).response)


@routes.delete("/v1/responses/{id}")
async def delete(request: Request, id: str) -> Response:
    """Forget an answer."""
    _shelf(request).drop(caller(request).key_id, id)
    return json_reply({"id": id, "object": "response.deleted", "deleted": True})


@routes.get("/v1/responses/{id}/input_items")
async def input_items(request: Request, id: str) -> Response:
    """What an answer was an answer to."""
    found = _shelf(request).find(caller(request).key_id, id)
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
            before = shelf.find(owner, previous, "previous_response_id").conversation
        except NotFound as error:
            message = "There is no such response to go on from; they are kept in memory, for a while."
            raise NotFound(message, param="previous_response_id", code="previous_response_not_found") from error
    ask = wire.parse_request(_with_items(body, shelf, owner), before)
    return ask, ask.messages[1:] if body.get("instructions") else ask.messages


def _with_items(body: dict[str, Any], shelf: Shelf, owner: str | None) -> dict[str, Any]:
    """`body`, items that are kept in place of references to them."""
    given = body.get("input")
    if not isinstance(given, list) or not any(_referred(item) for item in given):
        return body
    known = shelf.items(owner)
    return {**body, "input": [known.get(id, item) if (id := _referred(item)) else item for item in given]}


def _referred(item: Any) -> str | None:
    id = item.get("id") if isinstance(item, dict) and item.get("type") == "item_reference" else None
    return id if isinstance(id, str) else None


def _shelf(request: Request) -> Shelf:
    return request.app.state.responses
