"""Where a request to `auto` is tried first: rules, tool loops, stalls and queues; and what it may cost."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.router import Policy, RequestContext, Router
from baseload.router.budget import within
from baseload.router.conversation import Conversations, identity, stalled
from baseload.router.placement import Rule, RuleError, parse_rules
from baseload.router.plan import Forecast
from baseload.router.policy import Denied
from baseload.router.shadow import Shadows
from baseload.router.suppliers.profile import parse_profile
from baseload.wire.backend import ModelInfo
from baseload.wire.chat import (
    ChatRequest,
    Event,
    Extras,
    Failure,
    Finish,
    Message,
    ResponseFormat,
    SamplingParams,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    ToolSpec,
    Usage,
)
from baseload.wire.errors import Forbidden

from .conftest import Script

House = Callable[..., Any]
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


# ------------------------------------------------------------------------------------------------------------- rules


TITLES = {"name": "titles", "place": "acme/big", "system_contains": "be good", "tools_at_most": 0}


async def test_a_rule_moves_what_falls_under_it_and_nothing_else(house: House):
    router, _, away = house(["local"], ["from afar"], rules=parse_rules([TITLES]))
    handling, events = await run(router, ask())
    assert (text(events), handling.route) == ("from afar", "acme/big")
    assert [n.by for n in handling.decision.notes] == ["rule"]
    assert text((await run(router, ask(tools=(TOOL,))))[1]) == "local"
    assert len(away.asked) == 1


async def test_a_rules_place_is_none_of_the_ladder(house: House):
    router, _, away = house(["not json"], [], ladder=(), rules=parse_rules([TITLES]))
    handling, events = await run(router, ask(tools=(TOOL,), extras=Extras((OBJECT,))))
    assert isinstance(events[-1], Failure) and events[-1].code == "escalation_denied"
    assert away.asked == [] and handling.route == "small"


async def test_a_rule_opens_no_gate(house: House):
    router, *_ = house(["local"], ["from afar"], rules=parse_rules([TITLES]), air_gap=True)
    assert (await run(router, ask()))[0].route == "small"
    router, *_ = house(["local"], ["from afar"], rules=parse_rules([TITLES | {"only": True}]), air_gap=True)
    with pytest.raises(Forbidden):
        await run(router, ask())


@pytest.mark.parametrize(
    "table",
    [
        {"place": "local"},
        {"name": "x", "task": "t"},
        {"place": "local", "tsk": "t"},
        {"place": "local", "tools_at_most": "3"},
        {"place": "local", "task": "t", "only": 1},
    ],
)
def test_a_wrong_rule_says_what_is_wrong(table: dict[str, Any]):
    with pytest.raises(RuleError):
        parse_rules([table])


RULES = st.builds(
    Rule,
    st.just("r"),
    st.just("local"),
    task=st.sampled_from(["", "t"]),
    system_contains=st.sampled_from(["", "good", "x"]),
    last_contains=st.sampled_from(["", "hi"]),
    tools_at_most=st.integers(-1, 2),
    tools_at_least=st.integers(-1, 2),
)


@given(RULES)
def test_all_that_a_rule_names_must_hold(rule: Rule):
    request = ask(tools=(TOOL,), extras=Extras(task="t"))
    wanted = (
        rule.task in ("", "t") and rule.system_contains != "x" and rule.tools_at_most in (-1, 1, 2) and rule.tools_at_least <= 1
    )
    assert rule.holds(request) == wanted


# ---------------------------------------------------------------------------------------------------- conversations


async def test_who_called_a_tool_gets_its_result(ledger: Any):
    router, home, away = router_of(ledger)
    away.answers = ['{"a": 1}', "done"]
    first = ask("do it", tools=(TOOL,))
    await run(router, replace(first, extras=Extras((OBJECT,))))  # escalated
    again = replace(first, messages=(*first.messages, *loop(1)))
    handling, _ = await run(router, again)
    assert handling.route == AWAY and [n.by for n in handling.decision.notes] == ["latch"]
    assert (len(home.asked), len(away.asked)) == (1, 2)


async def test_a_new_turn_of_the_user_is_decided_anew_and_so_is_a_loop_without_latch(ledger: Any):
    router, _, away = router_of(ledger)
    away.answers = ['{"a": 1}']
    first = ask("do it", tools=(TOOL,))
    await run(router, replace(first, extras=Extras((OBJECT,))))
    turn = replace(first, messages=(*first.messages, said("assistant", "ok"), said("user", "and now?")))
    assert (await run(router, turn))[0].route == "small"
    router, _, away = router_of(ledger, latch=False)
    away.answers = ['{"a": 1}']
    await run(router, replace(first, extras=Extras((OBJECT,))))
    assert (await run(router, replace(first, messages=(*first.messages, *loop(1)))))[0].route == "small"


async def test_another_keys_conversation_is_another(ledger: Any):
    router, _, away = router_of(ledger)
    away.answers = ['{"a": 1}']
    first = ask("do it", tools=(TOOL,))
    await run(router, replace(first, extras=Extras((OBJECT,))), "one")
    assert (await run(router, replace(first, messages=(*first.messages, *loop(1))), "other"))[0].route == "small"


async def test_an_agent_that_goes_round_in_circles_is_handed_on(ledger: Any):
    router, home, _ = router_of(ledger)
    handling, events = await run(router, replace(ask(tools=(TOOL,)), messages=(*ask().messages, *loop(3))))
    assert (text(events), handling.route, home.asked) == ("from afar", AWAY, [])
    [note] = handling.decision.notes
    assert note.by == "stall" and "look" in note.why and "3 times" in note.why


def test_what_gets_on_is_not_stalled():
    assert not stalled(ChatRequest("auto", loop(2)))
    assert not stalled(ChatRequest("auto", tuple(m for i in range(5) for m in loop(1, str(i)))))
    assert stalled(ChatRequest("auto", loop(3)))


def test_a_conversation_is_known_by_its_name_or_by_how_it_begins():
    first = ask("do it")
    later = replace(first, messages=(*first.messages, said("assistant", "x"), said("user", "y")))
    assert identity(first, None) == identity(later, None) != identity(ask("another"), None)
    named = replace(ask("whatever"), extras=Extras(session="s"))
    assert identity(named, "k") == identity(replace(first, extras=Extras(session="s")), "k") != identity(named, "l")


def test_the_oldest_conversation_is_forgotten_first():
    known = Conversations(kept=2)
    known.of(ask("a"), None).usd = 1.0
    known.of(ask("b"), None)
    assert known.of(ask("a"), None).usd == 1.0
    known.of(ask("c"), None)
    assert known.of(ask("a"), None).usd == 1.0 and known.of(ask("b"), None).usd == 0.0


# -------------------------------------------------------------------------------------------------- queue and forecast


def router_of(
    ledger: Any,
    *,
    waiting: int = 0,
    forecast: Forecast | None = None,
    reviewed: Callable[[str], Forecast] | None = None,
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

    class Says:
        reads_answers = reviewed is not None

        def forecast(self, request: ChatRequest) -> Forecast | None:
            return forecast

        def review(self, request: ChatRequest, answer: str) -> Forecast | None:
            return reviewed(answer) if reviewed else None

    return Router([home], {"acme": (profile, away)}, Policy(**given), ledger, lambda: waiting, Says()), home, away


@pytest.mark.parametrize(("waiting", "spill", "route"), [(4, 5, "small"), (5, 5, AWAY), (99, 0, "small")])
async def test_a_long_queue_spills_over_where_that_is_allowed(ledger: Any, waiting: int, spill: int, route: str):
    router, *_ = router_of(ledger, waiting=waiting, spill_waiting=spill)
    assert (await run(router, ask()))[0].route == route
    router, *_ = router_of(ledger, waiting=waiting, spill_waiting=spill, air_gap=True)
    assert (await run(router, ask()))[0].route == "small"


@pytest.mark.parametrize(("gap", "route"), [(0.4, AWAY), (0.1, "small"), (-0.3, "small")])
async def test_a_forecast_decides_who_is_asked_first(ledger: Any, gap: float, route: str):
    router, *_ = router_of(ledger, forecast=Forecast(gap, 0.2))
    handling, _ = await run(router, ask())
    assert handling.route == route
    [note] = handling.decision.notes
    assert note.by == "predictor" and dict(note.numbers) == {"gap": gap, "threshold": 0.2}


@pytest.mark.parametrize(("gap", "route"), [(0.4, AWAY), (0.1, "small")])
async def test_a_doubtful_answer_is_not_kept(ledger: Any, gap: float, route: str):
    router, home, away = router_of(ledger, reviewed=lambda answer: Forecast(gap if answer == "local" else 9.0, 0.2))
    handling, events = await run(router, ask())
    assert (handling.route, text(events)) == (route, "local" if route == "small" else "from afar")
    assert handling.decision.buffered and handling.decision.notes[-1].by == "confidence"
    assert len(home.asked) == 1 and len(away.asked) == (route == AWAY)
    assert not away.asked or "doubtful" in away.asked[0].messages[-1].text


async def test_where_nobody_else_may_be_asked_an_answer_streams(ledger: Any):
    router, *_ = router_of(ledger, reviewed=lambda answer: Forecast(9.0, 0.2), air_gap=True)
    handling, events = await run(router, ask())
    assert text(events) == "local" and not handling.decision.buffered


# ---------------------------------------------------------------------------------------------------------- attempts


async def test_a_local_model_may_repair_its_answer_first(house: House):
    router, home, away = house(["no", "no", '{"a": 1}'], [], repairs=2)
    handling, events = await run(router, ask(extras=Extras((OBJECT,))))
    assert text(events) == '{"a": 1}' and away.asked == []
    assert [a.role for a in handling.attempts] == ["answer", "repair", "repair"]
    assert "not valid JSON" in home.asked[1].messages[-1].text


async def test_no_more_attempts_than_allowed(house: House):
    router, home, away = house(["no"] * 9, ['{"a": 1}'], repairs=5, max_attempts=3)
    handling, events = await run(router, ask(extras=Extras((OBJECT,))))
    assert isinstance(events[-1], Failure) and len(home.asked) == 3 and away.asked == []
    assert "3 tries" in events[-1].message and handling.decision.notes[-1].by == "attempts"


CALL = [ToolCallDelta(0, id="c", name="look", arguments='{"x": "one"}'), Usage(5, 2), Finish("tool_calls")]


@pytest.mark.parametrize(("checked", "route"), [(True, AWAY), (False, "small")])
async def test_a_call_that_no_tool_can_take_goes_to_the_next_place(ledger: Any, checked: bool, route: str):
    """The one kind of evidence that every agent's request carries with it: the schemas of its tools."""
    tool = ToolSpec("look", parameters={"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]})
    router, home, away = router_of(ledger, check_tools=checked)
    home.answers, away.answers = [list(CALL)], ["done"]
    handling, _ = await run(router, ask(tools=(tool,)))
    assert handling.route == route and handling.decision.buffered == checked
    home.answers, away.answers = [[replace(CALL[0], arguments='{"x": 1}'), *CALL[1:]]], []
    assert (await run(router, ask(tools=(tool,))))[0].route == "small"
    home.answers = ["in words"]
    assert (await run(router, ask(tools=(tool,))))[0].route == "small"


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


# --------------------------------------------------------------------------------------------------------- data classes


@pytest.mark.parametrize(
    ("named", "default", "goes"),
    [("public", "", True), ("secret", "", False), ("unheard of", "", False), ("", "secret", False), ("", "", True)],
)
async def test_data_goes_where_its_class_may(house: House, named: str, default: str, goes: bool):
    classes = {"public": frozenset({"acme"}), "secret": frozenset[str]()}
    router, *_ = house(["no"], ['{"a": 1}'], data_classes=classes, data_class=default)
    form = ResponseFormat()
    _, events = await run(router, ask(response_format=form, extras=Extras((OBJECT,), data_class=named)))
    assert isinstance(events[-1], Finish) == goes


# ------------------------------------------------------------------------------------------------------------- shadows


async def settled(router: Router) -> None:
    for _ in range(20):
        await asyncio.sleep(0.01)
    await router.close()


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


# ------------------------------------------------------------------------------- what a look with other eyes had found


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


async def test_a_long_conversation_goes_where_it_fits(ledger: Any):
    router, home, _ = router_of(ledger)
    home.count_tokens = lambda request: 5000  # what a real tokenizer says of it
    long = (*ask().messages, *loop(1, "word " * 800))
    handling, events = await run(router, replace(ask(tools=(TOOL,)), messages=long))
    assert isinstance(events[-1], Finish) and handling.route == AWAY and home.asked == []
    too_long = Failure(
        "This model's maximum context length is 9 tokens", 400, "invalid_request_error", "context_length_exceeded"
    )
    router, home, _ = router_of(ledger)
    home.answers = [too_long]
    assert (await run(router, ask()))[0].route == AWAY


async def test_a_doubted_answer_is_better_than_none(ledger: Any):
    down = Failure("down", 503, "server_error", "upstream_error")
    cases: list[tuple[dict[str, Any], list[Any]]] = [({"max_usd": 1e-9}, []), ({}, [down])]
    for limits, away_says in cases:
        router, _, away = router_of(ledger, reviewed=lambda answer: Forecast(0.9, 0.2), **limits)
        away.answers = away_says
        handling, events = await run(router, ask())
        assert (text(events), handling.route) == ("local", "small") and isinstance(events[-1], Finish)


async def test_a_cut_answer_with_tools_is_no_call_that_fits_nothing(ledger: Any):
    router, home, away = router_of(ledger, check_tools=True)
    home.answers = [[TextDelta("words"), Usage(1, 1), Finish("length")]]
    _, events = await run(router, ask(tools=(TOOL,)))
    assert events[-1] == Finish("length") and away.asked == []


async def test_the_true_failure_is_told(ledger: Any):
    router, home, _ = router_of(ledger, max_usd=1e-9)
    home.answers = [Failure("stuck", 503, "server_error", "engine_stuck", retryable=True, retry_after=2)]
    _, events = await run(router, ask())
    assert isinstance(events[-1], Failure) and events[-1].code == "engine_stuck"
