"""Calls that broke off without a word: they may be asked for, so they are counted, bounded, and paid for at their worst."""

from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest

from baseload.router import Policy, Router
from baseload.router.budget import within, worst_usd
from baseload.router.policy import Denied
from baseload.router.suppliers.limits import Limited
from baseload.router.suppliers.profile import SupplierError, parse_profile
from baseload.router.suppliers.resilience import Resilient
from baseload.wire.backend import ModelInfo
from baseload.wire.chat import ChatRequest, Event, Extras, Failure, Finish, SamplingParams, Usage
from baseload.wire.client import renamed

from .conftest import Script
from .routed import AWAY, OBJECT, ask, run, text

LOST = Failure("took too long", 502, "server_error", "upstream_error", retryable=True, unanswered=True)
REFUSED = replace(LOST, unanswered=False)
WORST = 0.0012  # of an answer of 2,000 tokens at gpt-4o-mini's price, the prompt aside


async def instantly(seconds: float) -> None:
    pass


def house(ledger: Any, answers: list[Any], local: list[Any] | None = None, **policy: Any) -> tuple[Router, Script]:
    """A router whose supplier is tried again as a real one is."""
    table = {"base_url": "http://127.0.0.1:1", "price_provider": "openai"}
    profile = parse_profile("acme", table | {"models": [{"id": "gpt-4o-mini", "context_length": 9000}]})
    away = Script(profile.models[0], answers)
    guarded = Resilient(Limited(away, "acme"), "acme", sleep=instantly)
    given = {"allowed_suppliers": frozenset({"acme"}), "ladder": (AWAY,)} | policy
    home = Script(ModelInfo("small", 1000), local or ["local"] * 9)
    return Router([home], {"acme": (profile, guarded)}, Policy(**given), ledger), away


def bought(**fields: Any) -> ChatRequest:
    return replace(ask(sampling=SamplingParams(max_tokens=2000), **fields), model=AWAY)


def rows(ledger: Any) -> list[dict[str, Any]]:
    ledger.flush()
    return ledger.request("req_1")["attempts"]


async def test_each_call_that_was_made_again_has_a_row(ledger: Any):
    router, away = house(ledger, [LOST, REFUSED, "yes"])
    handling, events = await run(router, bought())
    assert text(events) == "yes" and len(away.asked) == 3
    assert [(a["n"], a["error"], a["accepted"]) for a in rows(ledger)] == [
        (0, "upstream_error", False),
        (1, "upstream_error", False),
        (2, None, True),
    ]
    assert rows(ledger)[0]["retail_usd"] is None and rows(ledger)[1]["retail_usd"] == 0.0 and rows(ledger)[2]["retail_usd"] > 0
    assert handling.cost_usd is None  # nobody knows what the first asks for


async def test_a_call_that_was_refused_costs_nothing_and_a_lost_one_nobody_knows_what(ledger: Any):
    for failure, cost in ((replace(REFUSED, retryable=False), 0.0), (replace(LOST, retryable=False), None)):
        router, _ = house(ledger, [failure])
        handling, _ = await run(router, bought())
        assert handling.cost_usd == cost


@pytest.mark.parametrize(("times", "calls"), [(1.5, 1), (2.5, 2), (3.5, 3)])
async def test_under_a_budget_a_lost_call_counts_as_its_worst_case(ledger: Any, times: float, calls: int):
    router, away = house(ledger, [LOST] * 9)
    _, events = await run(router, bought(extras=Extras(budget_usd=WORST * times)))
    assert isinstance(events[-1], Failure) and len(away.asked) == calls


async def test_after_a_lost_call_the_rest_of_the_budget_is_still_to_be_had(ledger: Any):
    """Its worst case is known, so what it leaves is too."""
    router, away = house(ledger, [LOST, "[]", '{"a": 1}'], ["no json"] * 9, ladder=(AWAY,))
    request = ask(sampling=SamplingParams(max_tokens=2000), extras=Extras((OBJECT,), budget_usd=WORST * 2.5))
    handling, events = await run(router, request)
    assert isinstance(events[-1], Failure) and len(away.asked) == 2 and handling.cost_usd is None


async def test_what_a_conversation_may_have_cost_counts(ledger: Any):
    router, _ = house(ledger, [LOST, "yes"], conversation_usd=WORST * 3.5)
    handling, events = await run(router, bought())
    assert isinstance(events[-1], Finish)
    assert handling.conversation.usd >= 2 * WORST and handling.conversation.held == pytest.approx(0)


@pytest.mark.parametrize("checked", [False, True])
async def test_lost_calls_count_as_tries(ledger: Any, checked: bool):
    extras = Extras((OBJECT,)) if checked else Extras()
    router, away = house(ledger, [LOST] * 9, [Failure("down", 502)], max_attempts=3)
    handling, events = await run(router, ask(extras=extras))
    assert isinstance(events[-1], Failure) and len(away.asked) == 2  # after the local model's
    assert handling.decision.notes[-1].by == "attempts"


async def test_an_unchecked_request_makes_no_more_tries_than_allowed(ledger: Any):
    router, away = house(ledger, ["yes"], [Failure("down", 502)], max_attempts=1)
    _, events = await run(router, ask())
    assert isinstance(events[-1], Failure) and away.asked == []


# ---------------------------------------------------------------------------------------------------- limits and retries


async def test_a_retry_keeps_to_the_limits_and_a_refusal_by_them_is_no_failure_of_the_supplier():
    profile = parse_profile("acme", {"base_url": "http://127.0.0.1", "requests_per_minute": 6, "patience_s": 0.001})
    backend: Any = profile.guarded(Script(ModelInfo("big", 99), [REFUSED] * 99))
    ends: list[Event] = [[event async for event in backend.generate(ChatRequest("big"))][-1] for _ in range(9)]
    codes = [end.code for end in ends if isinstance(end, Failure)]
    assert codes[-1] == "supplier_limit"  # and not that it rests
    assert "supplier_resting" not in codes


async def test_each_retry_takes_its_turn():
    now, turns = [0.0], []

    class Source(Script):
        async def generate(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
            turns.append(now[0])
            async for event in super().generate(request):
                yield event

    async def sleep(seconds: float) -> None:
        now[0] += seconds

    limited = Limited(
        Source(ModelInfo("big", 99), [REFUSED, REFUSED, "yes"]), "acme", requests_per_minute=3, patience_s=99,
        clock=lambda: now[0], sleep=sleep,
    )  # fmt: skip
    events = [event async for event in Resilient(limited, "acme", lambda: now[0], sleep).generate(ChatRequest("big"))]
    assert isinstance(events[-1], Finish) and turns[1] - turns[0] >= 10 and turns[2] - turns[1] >= 19


# --------------------------------------------------------------------------------- what costs more than its tokens


def price(provider: str, model: str, usage: Usage) -> float:
    fresh = usage.prompt_tokens - usage.cache_write_tokens
    return fresh * 1e-6 + usage.cache_write_tokens * 1.25e-6 + usage.completion_tokens * 1e-5


@pytest.mark.parametrize(("body", "protocol"), [
    ({"service_tier": "priority"}, "openai_chat"), ({"service_tier": "auto"}, "anthropic_messages"),
    ({"web_search_options": {"search_context_size": "high"}}, "openai_chat"),
    ({"tools": [{"type": "web_search"}]}, "openai_responses"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "anthropic_messages"),
    ({"tools": [{"googleSearch": {}}]}, "google_generate"),
    ({"system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]}, "anthropic_messages"),
])  # fmt: skip
def test_what_has_a_price_of_its_own_is_not_asked_under_a_budget(body: dict[str, Any], protocol: str):
    request = replace(ask(), body=body, protocol=protocol)
    refused = within(request, "p", "m", 5.0, price)
    assert isinstance(refused, Denied) and "price of its own" in refused.reason
    assert within(request, "p", "m", None, price) == request


@pytest.mark.parametrize(("body", "protocol"), [
    ({"service_tier": "default"}, "openai_chat"), ({"service_tier": None, "modalities": ["text"]}, "openai_chat"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "openai_chat"),
    ({"tools": [{"name": "f", "input_schema": {}}, {"type": "bash_20250124", "name": "bash"}]}, "anthropic_messages"),
    ({"tools": [{"functionDeclarations": [{"name": "f"}]}]}, "google_generate"),
])  # fmt: skip
def test_what_costs_tokens_alone_may_go(body: dict[str, Any], protocol: str):
    assert not isinstance(within(replace(ask(), body=body, protocol=protocol), "p", "m", 5.0, price), Denied)


def test_a_prompt_that_is_written_to_a_cache_is_priced_so():
    cached = {"system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}
    asked = replace(ask("y" * 1000, sampling=SamplingParams(max_tokens=10)), protocol="anthropic_messages")
    plain, written = (worst_usd(replace(asked, body=body), "p", "m", price) for body in ({}, cached))
    assert plain + 0.25e-6 * 1000 < written < plain * 1.25


# ------------------------------------------------------------------------------------------ what fields are called


def test_a_limit_is_called_as_the_supplier_calls_it():
    profile = parse_profile("acme", {"base_url": "http://127.0.0.1", "rename_fields": {"max_completion_tokens": "max_tokens"}})
    names = profile.connection().rename_fields
    assert renamed({"max_completion_tokens": 7, "n": 1}, names) == {"max_tokens": 7, "n": 1}
    assert renamed({"max_completion_tokens": 7, "max_tokens": 9}, names) == {"max_tokens": 7}
    assert renamed({"max_completion_tokens": None, "max_tokens": 9}, names) == {"max_tokens": 9}
    assert renamed({"n": 1}, names) == {"n": 1}


@pytest.mark.parametrize("wrong", [["max_tokens"], {"max_tokens": 1}, {"max_tokens": ""}])
def test_names_that_are_none_are_refused(wrong: Any):
    with pytest.raises(SupplierError, match="rename_fields"):
        parse_profile("acme", {"base_url": "http://127.0.0.1", "rename_fields": wrong})
