"""Down the ladder: who is asked next, who is not, and what it cost."""

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import pytest

from baseload.ledger.ledger import Ledger
from baseload.router import Handling, Policy, RequestContext, Router
from baseload.router.policy import Denied, Rung, judge
from baseload.router.suppliers.profile import SupplierError, parse_profile
from baseload.wire.backend import ModelInfo
from baseload.wire.chat import ChatRequest, Event, Failure, Finish, Message, ResponseFormat, Text, TextDelta, ToolSpec, Usage

ASK = ChatRequest("auto", (Message("user", (Text("hi"),)),))
OBJECT = ResponseFormat("json_object")


class Says:
    """A backend with one answer."""

    def __init__(self, model: ModelInfo, events: Sequence[Event]) -> None:
        self.models, self._events, self.asked = (model,), events, 0

    def count_tokens(self, request: ChatRequest) -> int | None:
        return None

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        self.asked += 1
        for event in self._events:
            yield event


def said(text: str, usage: Usage | None = None) -> list[Event]:
    return [TextDelta(text, tokens=1), *([usage] if usage else []), Finish("stop")]


Build = Callable[..., tuple[Router, dict[str, Says]]]


@pytest.fixture
def build(ledger: Ledger) -> Build:
    """`build(local, one=..., two=...)`: a router whose ladder is the suppliers in their order, and everybody in it."""

    def make(local: Sequence[Event], **suppliers: Sequence[Event]) -> tuple[Router, dict[str, Says]]:
        everybody = {"small": Says(ModelInfo("small", 1000), local)}
        remote: dict[str, Any] = {}
        for name, events in suppliers.items():
            model = {"id": "gpt-4o-mini", "context_length": 9000}
            profile = parse_profile(name, {"base_url": "http://127.0.0.1:1", "price_provider": "openai", "models": [model]})
            everybody[name] = Says(profile.models[0], events)
            remote[name] = (profile, everybody[name])
        ladder = tuple(f"{name}/gpt-4o-mini" for name in suppliers)
        policy = Policy(allowed_suppliers=frozenset(suppliers), ladder=ladder)
        return Router([everybody["small"]], remote, policy, ledger), everybody

    return make


async def run(router: Router, request: ChatRequest = ASK) -> tuple[Handling, list[Event]]:
    handling = await router.handle(request, RequestContext("req_1"))
    return handling, [event async for event in handling.events]


DOWN = Failure("down", 502, "server_error", "upstream_error")


@pytest.mark.parametrize("status", [400, 403, 429, 502, 503])
async def test_what_one_supplier_refuses_the_next_may_take(build: Build, status: int):
    router, everybody = build([DOWN], one=[Failure("no", status)], two=said("yes"))
    handling, events = await run(router)
    assert events == said("yes")
    assert [everybody[name].asked for name in ("small", "one", "two")] == [1, 1, 1]
    assert handling.route == "two/gpt-4o-mini"


async def test_a_checked_request_goes_past_a_supplier_that_is_down(build: Build):
    router, everybody = build(said("no json"), one=[DOWN], two=said("{}"))
    _, events = await run(router, ChatRequest("auto", ASK.messages, response_format=OBJECT))
    assert events == said("{}") and everybody["one"].asked == 1


async def test_without_any_supplier_an_unmet_check_says_so(build: Build):
    router, _ = build(said("no json"))
    _, (failure,) = await run(router, ChatRequest("auto", ASK.messages, response_format=OBJECT))
    assert isinstance(failure, Failure) and (failure.status, failure.code) == (403, "escalation_denied")
    assert "json_object" in failure.message and "no supplier is configured" in failure.message


async def test_a_request_whose_events_are_never_read_is_not_left_running(build: Build, ledger: Ledger):
    router, everybody = build(said("hi"))
    handling = await router.handle(ASK, RequestContext("req_1"))
    await handling.events.aclose()
    ledger.flush()
    assert ledger.request("req_1") is None and everybody["small"].asked == 0


# ------------------------------------------------------------------------------------------------- tools


def test_tools_are_not_bought_from_a_model_that_cannot_call_them():
    policy = Policy(allowed_suppliers=frozenset({"acme"}))
    with_tools = ChatRequest("auto", ASK.messages, tools=(ToolSpec("f"),))
    blind = Rung("acme/big", ModelInfo("acme/big", 1000, local=False), "acme")
    verdict = judge(with_tools, policy, blind)
    assert isinstance(verdict, Denied) and verdict.gate == "tools"
    able = Rung("acme/big", ModelInfo("acme/big", 1000, local=False, tools=True), "acme")
    local = Rung("small", ModelInfo("small", 1000))
    unused = ChatRequest("auto", ASK.messages, tools=(ToolSpec("f"),), tool_choice="none")
    assert not any(isinstance(judge(*case), Denied) for case in [(with_tools, policy, able), (with_tools, policy, local)])
    assert not isinstance(judge(unused, policy, blind), Denied)


# ------------------------------------------------------------------------------------------------- cost


async def test_a_local_answer_costs_nothing_at_suppliers(build: Build):
    handling, _ = await run(build(said("hi"))[0])
    assert handling.cost_usd == 0


async def test_a_priced_answer_has_its_list_price(build: Build):
    handling, _ = await run(build([DOWN], one=said("hi", Usage(1_000_000, 0)))[0])
    assert handling.cost_usd == pytest.approx(0.15)


async def test_an_answer_without_usage_has_no_known_cost(build: Build):
    handling, _ = await run(build([DOWN], one=said("hi"))[0])
    assert handling.cost_usd is None


async def test_a_call_that_was_left_has_no_known_cost(build: Build):
    handling = await build([DOWN], one=said("hi", Usage(9, 9)))[0].handle(ASK, RequestContext("req_1"))
    assert await anext(handling.events) == TextDelta("hi", tokens=1)
    await handling.events.aclose()
    assert handling.cost_usd is None


async def test_a_call_that_failed_before_a_word_cost_nothing(build: Build):
    handling, _ = await run(build([DOWN], one=[DOWN], two=said("hi", Usage(1_000_000, 0)))[0])
    assert handling.cost_usd == pytest.approx(0.15)


# ------------------------------------------------------------------------------------------------- profiles

MODEL = {"id": "m", "context_length": 10}


@pytest.mark.parametrize(
    ("name", "table", "word"),
    [
        ("a/b", {}, "name"),
        ("", {}, "name"),
        ("acme", {"models": "m"}, "models"),
        ("acme", {"models": [MODEL | {"context_length": "many"}]}, "context_length"),
        ("acme", {"models": [MODEL | {"context_length": True}]}, "context_length"),
        ("acme", {"models": [MODEL | {"context_length": 0}]}, "context"),
        ("acme", {"models": [MODEL | {"id": ""}]}, "name"),
        ("acme", {"models": [MODEL | {"tools": "no"}]}, "tools"),
        ("acme", {"first_byte_s": True}, "first_byte_s"),
        ("acme", {"first_byte_s": float("nan")}, "first_byte_s"),
    ],
)
def test_a_suppliers_table_is_read_strictly(name: str, table: dict[str, Any], word: str):
    with pytest.raises(SupplierError, match=word):
        parse_profile(name, {"base_url": "http://x", **table})
