"""Where a request to `auto` is tried first: rules, tool loops, stalls, queues and forecasts; and how often."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.router.conversation import Conversations, identity, stalled
from baseload.router.placement import Rule, RuleError, parse_rules
from baseload.router.plan import Forecast
from baseload.wire.chat import (
    ChatRequest,
    Extras,
    Failure,
    Finish,
    ResponseFormat,
    TextDelta,
    ToolCallDelta,
    ToolSpec,
    Usage,
)
from baseload.wire.errors import Forbidden

from .routed import AWAY, OBJECT, TOOL, ask, loop, router_of, run, said, text

House = Callable[..., Any]

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
