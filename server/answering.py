"""One answer, from a request to its last byte: what every generating route of every protocol shares."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import Request
from starlette.responses import Response

from ..harness.job import PREFIX, prepare
from ..router.router import RequestContext
from ..wire import fields
from ..wire.chat import ChatRequest, Event, Failure
from ..wire.errors import BadRequest, ModelNotFound
from ..wire.fields import MAX_NAME
from .callers import caller
from .logs import Notes
from .metrics import Meter
from .replies import failure_reply, json_reply
from .services import Handling, Life, Services
from .shapes import OPENAI, Shape
from .streaming import ClientGone, EventFlow, EventStream, Renderer, collect, together, unless_gone

# What clients may say of a request in a header, where they can't add to its body; and how agents name a conversation.
HEADERS = {
    "x-baseload-data-class": "data_class", "x-baseload-budget-usd": "budget_usd", "x-baseload-task": "task",
    "x-baseload-session": "session",
}  # fmt: skip
SESSIONS = ("x-claude-code-session-id", "session-id", "x-session-id")
HEAD_START_S = 0.2  # an answer that fails within this time gets a status of its own, even if a stream was asked for


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How one wire format renders an answer."""

    prefix: str  # of an answer's id
    render: Callable[[ChatRequest, list[Event], str, int, str], Mapping[str, Any]]
    stream: Callable[[ChatRequest, str, int, str], Renderer]
    shape: Shape = OPENAI


async def answer(request: Request, endpoint: Endpoint, asks: Sequence[ChatRequest]) -> Response:
    """Ask, answer: all `asks` as the choices of one. The work stops when the client leaves."""
    life: Life = request.app.state.life
    services, who = life.require(), caller(request)
    job = asks[0].model.removeprefix(PREFIX) if asks[0].model.startswith(PREFIX) else None
    asks = [named(replace(told(ask, request.headers), tenant=who.tenant), request) for ask in asks]
    notes: Notes = request.scope["state"]["notes"]
    notes.model = asks[0].model
    making = Making(life, asks, Meter(request.app.state.metrics, asks[0].model, notes.started), notes, who.used)
    try:
        context = RequestContext(notes.request_id, who.key_id, who.scopes, job)
        return await unless_gone(making.respond(services, endpoint, context), request.receive)
    except BaseException as error:
        await making.over(gone=isinstance(error, ClientGone))
        raise


async def count(request: Request, ask: ChatRequest) -> int:
    """The prompt's length in tokens. Raises BadRequest where only the supplier could tell."""
    services = request.app.state.life.require()
    found = await services.router.count_tokens(named(ask, request))
    if found is None:
        raise BadRequest("The length of a prompt to this model is known to its supplier alone.", param="model")
    return found


def told(ask: ChatRequest, headers: Mapping[str, str]) -> ChatRequest:
    """`ask` with what its headers tell Baseload, where its body doesn't. Raises BadRequest."""
    said = {field: headers[name] for name, field in HEADERS.items() if headers.get(name)}
    said.setdefault("session", next((headers[name] for name in SESSIONS if headers.get(name)), ""))
    named = {field: value for field, value in said.items() if value and getattr(ask.extras, field) in (None, "")}
    if not named:
        return ask
    given: dict[str, Any] = {k: v[:MAX_NAME] if k == "session" else v for k, v in named.items()}
    if "budget_usd" in given:
        try:
            given["budget_usd"] = float(given["budget_usd"])
        except ValueError as error:
            raise BadRequest("The header x-baseload-budget-usd must be a number.", param="baseload.budget_usd") from error
    more = fields.extras({"baseload": given})
    return replace(ask, extras=replace(ask.extras, **{field: getattr(more, field) for field in given}))


def named(ask: ChatRequest, request: Request) -> ChatRequest:
    """What `ask` stands for: its job's request, and the default model where its own name is unknown and there is a default.
    Raises ModelNotFound, and Forbidden where this caller may not ask for it."""
    services, default_model = request.app.state.life.require(), request.app.state.default_model
    prepared = prepare(ask, services.jobs)
    try:
        services.router.resolve(prepared.model)
    except ModelNotFound:
        if not default_model:
            raise
        caller(request).allow(default_model)
        return replace(prepared, model=default_model)
    caller(request).allow(ask.model)
    return prepared


class Making:
    """One answer being made, from its admission to its last byte."""

    def __init__(
        self, life: Life, asks: Sequence[ChatRequest], meter: Meter, notes: Notes, used: Callable[[int], None]
    ) -> None:
        """`used` is told how many tokens it took in the end."""
        life.admit()
        life.enter(self, self._end)
        self._used = used
        self._life, self._asks, self._meter, self._notes = life, asks, meter, notes
        self._handlings: list[Handling] = []
        self._flow: EventFlow | None = None
        self._ended: Failure | None = None
        self._booked = False

    async def respond(self, services: Services, endpoint: Endpoint, context: RequestContext) -> Response:
        """The response, whole or about to stream. Raises what the router raises."""
        ask = self._asks[0]
        named = (f"{endpoint.prefix}{context.request_id.removeprefix('req_')}", int(time.time()), ask.model)
        flow = await self._begin(services, context)
        if ask.stream:
            first = await flow.first(HEAD_START_S)
            if not isinstance(first, Failure):
                renderer = endpoint.stream(self._whole(), *named)
                return EventStream(flow, renderer, endpoint.shape, self._headers(), self._meter.saw, self.over)
        events = await collect(flow, self._meter.saw)
        headers = self._headers() | self._costs()
        failure = next((event for event in events if isinstance(event, Failure)), None)
        body = None if failure else endpoint.render(self._whole(), events, *named)
        await self.over(gone=False)
        return failure_reply(failure, headers, endpoint.shape) if failure else json_reply(body, headers=headers)

    async def over(self, gone: bool) -> None:
        """The answer is over; everything that still works on it stops. Safe to call again, as after a cancellation in here."""
        try:
            if self._flow:
                await self._flow.close()
            for handling in self._handlings:
                await handling.events.aclose()
        finally:
            self._book(gone)

    def _book(self, gone: bool) -> None:
        if self._booked:
            return
        self._booked = True
        self._life.leave(self)
        self._notes.route = self._route()
        self._meter.over(self._notes.route, self._attempts(), gone)
        if usage := self._meter.usage:
            self._notes.prompt_tokens, self._notes.completion_tokens = usage.prompt_tokens, usage.completion_tokens
            self._used(usage.prompt_tokens + usage.completion_tokens)
        self._notes.gone = gone

    async def _begin(self, services: Services, context: RequestContext) -> EventFlow:
        for n, ask in enumerate(self._asks):
            # Each prompt is a request of its own in the ledger.
            own = replace(context, request_id=f"{context.request_id}.{n}") if n else context
            self._handlings.append(await services.router.handle(ask, own))
        sources, choices = [h.events for h in self._handlings], self._asks[0].sampling.n
        events = sources[0] if len(sources) == 1 else together(sources, choices)
        self._flow = EventFlow(events, choices * len(sources), context.request_id)
        if self._ended:
            self._flow.end(self._ended)
        return self._flow

    def _whole(self) -> ChatRequest:
        """The request as its renderer sees it: with the choices of all prompts."""
        ask = self._asks[0]
        if len(self._asks) == 1:
            return ask
        return replace(ask, sampling=replace(ask.sampling, n=ask.sampling.n * len(self._asks)))

    def _end(self, failure: Failure) -> None:
        self._ended = failure
        if self._flow:
            self._flow.end(failure)

    def _route(self) -> str:
        return self._handlings[0].route if self._handlings else ""

    def _attempts(self) -> int:
        return sum(len(handling.attempts) for handling in self._handlings)

    def _headers(self) -> dict[str, str]:
        return {"x-baseload-route": route} if (route := self._route()) else {}

    def _costs(self) -> dict[str, str]:
        costs = [handling.cost_usd for handling in self._handlings]
        known = [cost for cost in costs if cost is not None]
        total = {"x-baseload-cost-usd": f"{sum(known):.6f}"} if len(known) == len(costs) else {}
        return {"x-baseload-attempts": str(self._attempts()), **total}
