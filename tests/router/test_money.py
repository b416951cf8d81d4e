"""What requests and conversations may cost, all tries together, shadows too."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.router import RequestContext
from baseload.router.budget import within
from baseload.router.policy import Denied
from baseload.router.shadow import Shadows
from baseload.wire.chat import (
    Event,
    Extras,
    Failure,
    Finish,
    SamplingParams,
    TextDelta,
    Usage,
)

from .routed import AWAY, OBJECT, ask, router_of, run, settled, text

# ------------------------------------------------------------------------------------------------------------ budgets


@pytest.mark.parametrize(
    "limit", [{"extras": Extras((OBJECT,), budget_usd=1e-9)}, {"max_usd": 1e-9}, {"conversation_usd": 1e-9}]
)
async def test_what_could_cost_more_than_allowed_is_not_asked(ledger: Any, limit: dict[str, Any]):
    extras = limit.pop("extras", Extras((OBJECT,)))
    router, _, away = router_of(ledger, **limit)
    handling, events = await run(router, ask(extras=extras))
    assert isinstance(events[-1], Failure) and events[-1].status == 403 and away.asked == []
    assert handling.decision.notes[-1].by == "budget"


async def test_a_supplier_asked_by_name_keeps_to_the_budget_too(ledger: Any):
    router, _, away = router_of(ledger)
    request = replace(ask(extras=Extras(budget_usd=1e-9)), model=AWAY)
    _, events = await run(router, request)
    assert [type(e) for e in events] == [Failure] and away.asked == []


async def test_a_conversation_stops_where_its_money_ends(ledger: Any):
    router, _, away = router_of(ledger, conversation_usd=0.0008)
    big = [TextDelta("x"), Usage(1000, 500), Finish("stop")]
    away.answers = [list(big) for _ in range(9)]
    request = replace(ask(sampling=SamplingParams(max_tokens=500)), model=AWAY)
    ends = [(await run(router, request))[1][-1] for _ in range(4)]
    assert [type(e) for e in ends] == [Finish, Finish, Failure, Failure]


async def test_requests_that_run_beside_each_other_share_the_conversations_money(ledger: Any):
    router, _, away = router_of(ledger, conversation_usd=0.0008)
    away.answers = [[TextDelta("x"), Usage(20, 200), Finish("stop")] for _ in range(9)]
    request = replace(ask(sampling=SamplingParams(max_tokens=500)), model=AWAY)
    handlings = [await router.handle(request, RequestContext(f"req_{n}")) for n in range(6)]

    async def read(handling: Any) -> Event:
        events = []
        async for event in handling.events:
            await asyncio.sleep(0)
            events.append(event)
        return events[-1]

    ends = await asyncio.gather(*map(read, handlings))
    assert sum(isinstance(end, Finish) for end in ends) == len(away.asked) < 6
    assert sum((sent.sampling.max_tokens or 0) * 0.6e-6 for sent in away.asked) <= 0.0008
    assert handlings[0].conversation.held == pytest.approx(0) and 0 < handlings[0].conversation.usd <= 0.0008


@given(
    st.integers(0, 3000),
    st.one_of(st.none(), st.integers(1, 5000)),
    st.integers(1, 4),
    st.floats(0, 0.02),
    st.sampled_from(["openai_chat", "openai_responses", "anthropic_messages", "google_generate"]),
)
def test_the_worst_case_of_what_is_sent_fits(characters: int, wanted: int | None, n: int, left: float, protocol: str):
    """Whatever the tokenizer makes of the prompt, and however long the answers get."""

    def price(provider: str, model: str, usage: Usage) -> float:
        return usage.prompt_tokens * 2e-7 + usage.completion_tokens * 8e-7

    request = replace(
        ask("ü" * characters, sampling=SamplingParams(max_tokens=wanted, n=n)), protocol=protocol, body={"keep": 1}
    )
    sent = within(request, "p", "m", left, price)
    if isinstance(sent, Denied):
        assert price("p", "m", Usage(4 * characters + 100, n * min(wanted or 256, 256))) > left * 0.5
        return
    most = sent.sampling.max_tokens
    assert most is not None and (wanted is None or most <= wanted)
    assert price("p", "m", Usage(len(("ü" * characters).encode()) + 20, n * most)) <= left + 1e-9
    if sent is not request and protocol in ("openai_chat", "openai_responses", "anthropic_messages"):
        assert sent.body["keep"] == 1 and most in sent.body.values()


def test_without_a_budget_nothing_is_changed_and_without_a_price_nothing_is_asked():
    assert within(ask(), "p", "m", None, lambda *_: None) == ask()
    assert isinstance(within(ask(), "p", "m", 5.0, lambda *_: None), Denied)


async def test_what_a_client_does_not_bound_is_bounded_within_reason(ledger: Any):
    router, _, away = router_of(ledger, max_usd=100.0)
    await run(router, replace(ask(), model=AWAY))
    assert away.asked[0].sampling.max_tokens == 8192


async def test_an_answer_of_unknown_cost_counts_as_what_it_might_have_cost(ledger: Any):
    router, _, away = router_of(ledger, conversation_usd=0.01)
    away.answers = [[TextDelta("x"), Finish("stop")] for _ in range(9)]
    ends = [(await run(router, replace(ask(), model=AWAY)))[1][-1] for _ in range(5)]
    assert isinstance(ends[0], Finish) and isinstance(ends[-1], Failure) and ends[-1].status == 403


async def test_shadows_are_paid_from_the_conversations_money(ledger: Any):
    router, _, away = router_of(ledger, shadow=1.0, conversation_usd=0.002)
    away.answers = [[TextDelta("x"), Usage(1000, 1000), Finish("stop")] for _ in range(30)]
    handling: Any = None
    for n in range(9):
        handling = await router.handle(ask(sampling=SamplingParams(max_tokens=1000)), RequestContext(f"req_{n}"))
        assert isinstance([event async for event in handling.events][-1], Finish)
        await asyncio.sleep(0.01)
    await settled(router)
    assert 1 <= len(away.asked) <= 4
    assert handling.conversation.held == pytest.approx(0)


# ------------------------------------------------------------------------------------------------------------- shadows


async def test_a_supplier_answers_too_and_nobody_sees_it(ledger: Any):
    router, _, away = router_of(ledger, shadow=1.0)
    away.answers = ["no object"]
    form = ask(extras=Extras(({"type": "contains", "values": ["local"]},)))
    handling, events = await run(router, form)
    assert (text(events), handling.route, handling.cost_usd) == ("local", "small", 0.0)
    await settled(router)
    ledger.flush()
    row = ledger.request("req_1")
    assert row and [(a["role"], a["accepted"]) for a in row["attempts"]] == [("answer", True), ("shadow", False)]
    assert row["attempts"][1]["retail_usd"] > 0 and row["decision"]["notes"][-1]["by"] == "shadow"
    of_shadow = [o for o in row["outcomes"] if o["attempt_id"] == row["attempts"][1]["id"] and o["check"] == "contains"]
    assert [o["passed"] for o in of_shadow] == [False]


@pytest.mark.parametrize("policy", [{"shadow": 0.0}, {"shadow": 1.0, "air_gap": True}, {"shadow": 1.0, "max_usd": 1e-9}])
async def test_no_shadow_where_none_is_wanted_allowed_or_paid_for(ledger: Any, policy: dict[str, Any]):
    router, _, away = router_of(ledger, **policy)
    await run(router, ask())
    await settled(router)
    assert away.asked == []


def test_the_share_of_requests_is_kept(ledger: Any):
    chosen = sum(Shadows(0.05, ledger).wants(f"req_{n}") for n in range(4000))
    assert 140 < chosen < 270
