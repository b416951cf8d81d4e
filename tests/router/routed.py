"""What the tests of `auto` ask, and a router for them whose supplier has a price."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from baseload.router import Policy, RequestContext, Router
from baseload.router.plan import Forecast
from baseload.router.suppliers.profile import parse_profile
from baseload.wire.backend import ModelInfo
from baseload.wire.chat import (
    ChatRequest,
    Event,
    Message,
    Text,
    TextDelta,
    ToolCall,
    ToolResult,
    ToolSpec,
)

from .conftest import Script

OBJECT = {"type": "json_object"}
AWAY = "acme/gpt-4o-mini"
TOOL = ToolSpec("look")


def said(role: Any, text: str) -> Message:
    return Message(role, (Text(text),))


def ask(text: str = "hi", **fields: Any) -> ChatRequest:
    return ChatRequest("auto", (said("system", "be good"), said("user", text)), **fields)


def loop(n: int, result: str = "nothing", name: str = "look") -> tuple[Message, ...]:
    """n calls and their results."""
    turns: list[Message] = []
    for i in range(n):
        turns.append(Message("assistant", (ToolCall(f"c{i}", name, '{"x": 1}'),)))
        turns.append(Message("tool", (ToolResult(f"c{i}", (Text(result),)),)))
    return tuple(turns)


async def run(router: Router, request: ChatRequest, key: str | None = None) -> tuple[Any, list[Event]]:
    handling = await router.handle(request, RequestContext("req_1", key))
    return handling, [event async for event in handling.events]


def text(events: list[Event]) -> str:
    return "".join(e.text for e in events if isinstance(e, TextDelta))


def router_of(
    ledger: Any,
    *,
    waiting: int = 0,
    forecast: Forecast | None = None,
    reviewed: Callable[[str], Forecast] | None = None,
    signals: frozenset[str] = frozenset(),
    heard: list[dict[str, float]] | None = None,
    **policy: Any,
) -> tuple[Router, Script, Script]:
    table = {
        "base_url": "http://127.0.0.1:1",
        "price_provider": "openai",
        "models": [{"id": "gpt-4o-mini", "context_length": 9000, "tools": True}],
    }
    profile = parse_profile("acme", table)
    home, away = Script(ModelInfo("small", 1000), ["local"] * 9), Script(profile.models[0], ["from afar"] * 9)
    given: Any = {"allowed_suppliers": frozenset({"acme"}), "ladder": (AWAY,)} | policy

    told = [] if heard is None else heard

    class Says:
        reads_answers = reviewed is not None

        def forecast(self, request: ChatRequest) -> Forecast | None:
            return forecast

        wants = signals

        def review(self, request: ChatRequest, answer: str, signals: Mapping[str, float]) -> Forecast | None:
            told.append(dict(signals))
            return reviewed(answer) if reviewed else None

    return Router([home], {"acme": (profile, away)}, Policy(**given), ledger, lambda: waiting, Says()), home, away


async def settled(router: Router) -> None:
    for _ in range(20):
        await asyncio.sleep(0.01)
    await router.close()
