"""Where requests run, what escalates, and what the ledger says of it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from baseload.ledger.ledger import Ledger
from baseload.router import Handling, RequestContext, Router
from baseload.wire.chat import ChatRequest, Event, Extras, Failure, Finish, Message, ResponseFormat, Text, TextDelta, Usage
from baseload.wire.errors import BadRequest, ContextLengthExceeded, EgressDenied, Forbidden, ModelNotFound

House = Callable[..., Any]
SCHEMA = ResponseFormat("json_schema", schema={"type": "object", "required": ["a"]})
GOOD, BAD = '{"a": 1}', "I think it is 1."
DOWN = Failure("down", 502, "server_error", "upstream_error", retryable=True)


def ask(model: str, text: str = "hi", **fields: Any) -> ChatRequest:
    return ChatRequest(model, (Message("user", (Text(text),)),), **fields)


async def run(router: Router, request: ChatRequest) -> tuple[Handling, list[Event]]:
    handling = await router.handle(request, RequestContext("req_1"))
    return handling, [event async for event in handling.events]


def text(events: list[Event]) -> str:
    return "".join(e.text for e in events if isinstance(e, TextDelta))


def ends(events: list[Event]) -> int:
    return sum(isinstance(e, Finish | Failure) for e in events)


async def test_local_answers_locally(house: House):
    router, _, away = house(["hello"])
    handling, events = await run(router, ask("local"))
    assert (text(events), ends(events), handling.route, handling.cost_usd) == ("hello", 1, "small", 0.0)
    assert away.asked == []


@pytest.mark.parametrize("name", ["small", "local", "auto"])
async def test_names_of_the_local_model(house: House, name: str):
    router, home, _ = house(["hello"])
    assert text((await run(router, ask(name)))[1]) == "hello"
    assert home.asked[0].model == "small"


async def test_a_supplier_by_name(house: House):
    router, home, away = house([], ["from afar"])
    handling, events = await run(router, ask("acme/big"))
    assert (text(events), handling.route, away.asked[0].model) == ("from afar", "acme/big", "big")
    assert home.asked == []


@pytest.mark.parametrize("name", ["", "nobody", "acme/none", "acme", "AUTO"])
async def test_an_unknown_name(house: House, name: str):
    with pytest.raises(ModelNotFound):
        await run(house([])[0], ask(name))


async def test_a_failed_check_escalates_with_the_evidence_and_both_tries_are_written_down(house: House, ledger: Ledger):
    router, _, away = house([BAD], [GOOD])
    handling, events = await run(router, ask("auto", response_format=SCHEMA))
    assert (text(events), ends(events), handling.route) == (GOOD, 1, "acme/big")
    told = [m.text for m in away.asked[0].messages]
    assert told[0] == "hi" and told[1] == BAD and "not valid JSON" in told[2]
    ledger.flush()
    row = ledger.request("req_1")
    assert row is not None
    assert [(a["backend"], bool(a["accepted"])) for a in row["attempts"]] == [("local", False), ("acme", True)]
    assert any(o["check"] == "json_schema" and not o["passed"] for o in row["outcomes"])
    assert handling.cost_usd is None  # nobody knows this supplier's price: it is not free


async def test_an_accepted_answer_stays_local(house: House):
    router, _, away = house([GOOD], [GOOD])
    handling, events = await run(router, ask("auto", response_format=SCHEMA))
    assert (text(events), handling.route, len(handling.attempts), away.asked) == (GOOD, "small", 1, [])


async def test_no_word_of_a_failed_answer_reaches_the_client(house: House):
    router, *_ = house([BAD], [GOOD])
    assert BAD not in text((await run(router, ask("auto", response_format=SCHEMA)))[1])


@pytest.mark.parametrize(
    ("policy", "fields", "word"),
    [
        ({"air_gap": True}, {}, "air gap"),
        ({"allowed_suppliers": frozenset()}, {}, "not among the allowed"),
        ({}, {"extras": Extras(allow_suppliers=False)}, "does not allow"),
    ],
)
async def test_where_nothing_may_leave_an_unmet_check_is_a_clear_error(house: House, policy: Any, fields: Any, word: str):
    router, _, away = house([BAD], [GOOD], **policy)
    _, events = await run(router, ask("auto", response_format=SCHEMA, **fields))
    (failure,) = events
    assert isinstance(failure, Failure) and failure.status == 403 and failure.code == "escalation_denied"
    assert "json_schema" in failure.message and word in failure.message
    assert away.asked == []


async def test_when_all_fail_the_client_is_told(house: House):
    _, events = await run(house([BAD], [BAD])[0], ask("auto", response_format=SCHEMA))
    assert [type(e) for e in events] == [Failure] and isinstance(events[0], Failure) and events[0].code == "checks_failed"


async def test_a_local_request_gets_its_answer_and_the_verdict_is_written_down(house: House, ledger: Ledger):
    router, _, away = house([BAD])
    _, events = await run(router, ask("local", response_format=SCHEMA))
    assert text(events) == BAD and away.asked == []
    ledger.flush()
    row = ledger.request("req_1")
    assert row and any(o["check"] == "json_schema" and not o["passed"] for o in row["outcomes"])


async def test_a_failure_before_the_first_word_hands_over(house: House):
    handling, events = await run(house([DOWN], ["from afar"])[0], ask("auto"))
    assert text(events) == "from afar" and handling.route == "acme/big" and len(handling.attempts) == 2


async def test_a_failure_after_the_first_word_does_not(house: House):
    router, _, away = house([[TextDelta("half", tokens=1), DOWN]], ["from afar"])
    _, events = await run(router, ask("auto"))
    assert text(events) == "half" and isinstance(events[-1], Failure) and ends(events) == 1 and away.asked == []


@pytest.mark.parametrize("status", [400, 429])
async def test_what_is_the_clients_fault_or_a_full_queue_is_not_bought_elsewhere(house: House, status: int):
    router, _, away = house([Failure("no", status, "x", "y")], ["from afar"])
    _, events = await run(router, ask("auto"))
    assert [type(e) for e in events] == [Failure] and away.asked == []


async def test_a_prompt_too_long_for_the_local_model_goes_where_it_fits(house: House):
    router, home, _ = house([], ["from afar"])
    _, events = await run(router, ask("auto", "x" * 2000))
    assert text(events) == "from afar" and home.asked == []
    with pytest.raises(ContextLengthExceeded):
        await run(router, ask("local", "x" * 2000))


async def test_gates_raise_where_no_place_is_left(house: House):
    with pytest.raises(EgressDenied):
        await run(house([], air_gap=True)[0], ask("acme/big"))
    with pytest.raises(Forbidden):
        await run(house([])[0], ask("acme/big", extras=Extras(allow_suppliers=False)))
    with pytest.raises(BadRequest):
        await run(house([])[0], ChatRequest("acme/big", prompt="x"))


async def test_leaving_early_stops_the_backend_and_closes_the_books(house: House, ledger: Ledger):
    router, home, _ = house([[TextDelta(str(i), tokens=1) for i in range(99)]])
    handling = await router.handle(ask("local"), RequestContext("req_1"))
    assert await anext(handling.events) == TextDelta("0", tokens=1)
    await handling.events.aclose()
    ledger.flush()
    row = ledger.request("req_1")
    assert home.closed == 1
    assert row is not None and row["status"] == "cancelled" and row["attempts"][0]["error"] == "cancelled"


async def test_all_choices_must_pass(house: House):
    two: list[Event] = [
        TextDelta(GOOD, 0, 1),
        TextDelta(BAD, 1, 1),
        Finish("stop", 0),
        Usage(1, 2),
        Finish("stop", 1),
    ]
    request = ask("auto", response_format=SCHEMA)
    request = replace(request, sampling=replace(request.sampling, n=2))
    handling, _ = await run(house([two], [two])[0], request)
    assert len(handling.attempts) == 2


async def test_the_decision_explains_itself(house: House, ledger: Ledger):
    router, *_ = house([GOOD], air_gap=True)
    await run(router, ask("auto", response_format=SCHEMA))
    ledger.flush()
    row = ledger.request("req_1")
    assert row is not None
    assert [(r["name"], r["allowed"], r["gate"]) for r in row["decision"]["rungs"]] == [
        ("small", True, ""),
        ("acme/big", False, "air_gap"),
    ]
    assert "json_schema" in row["decision"]["checks"]


def test_models_lists_what_can_be_asked_for_now(house: House):
    assert [m.id for m in house([])[0].models()] == ["small", "auto", "local", "acme/big"]
    assert [m.id for m in house([], air_gap=True)[0].models()] == ["small", "auto", "local"]


def test_a_ladder_to_nowhere_stops_the_start(house: House):
    with pytest.raises(BadRequest, match="ladder"):
        house([], ladder=("acme/none",))
