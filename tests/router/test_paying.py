"""Every call at a supplier is paid from the budgets of its key and job, on every path that it can take."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from baseload.ledger import budgets
from baseload.ledger.purse import Purse
from baseload.ledger.schema import attempts, reservations
from baseload.ledger.scopes import parse
from baseload.router import Policy, RequestContext, Router
from baseload.router.suppliers.profile import parse_profile
from baseload.wire.backend import ModelInfo
from baseload.wire.chat import Event, Extras, Failure, Finish, SamplingParams, TextDelta, Usage
from baseload.wire.errors import Forbidden

from .conftest import Script
from .routed import AWAY, OBJECT, ask, settled

GOOD: list[Event] = [TextDelta("{}", tokens=1), Usage(30, 10), Finish("stop")]
PRICE = Decimal("0.0000105")  # of gpt-4o-mini: 30 at 0.15 dollars a million, 10 at 0.6
Make = Callable[..., tuple[Router, Script, Script]]


@pytest.fixture
def purse(ledger: Any) -> Iterator[Purse]:
    found = Purse(ledger.engine)
    yield found
    found.close()


@pytest.fixture
def paying(ledger: Any, purse: Purse) -> Make:
    """(router, local, supplier); `model` without a price if wanted."""

    def make(model: str = "gpt-4o-mini", **policy: Any) -> tuple[Router, Script, Script]:
        table = {"base_url": "http://127.0.0.1:1", "price_provider": "openai"}
        profile = parse_profile("acme", table | {"models": [{"id": model, "context_length": 9000}]})
        home, away = Script(ModelInfo("small", 1000), ["no json"] * 9), Script(profile.models[0], [GOOD] * 9)
        given: Any = {"allowed_suppliers": frozenset({"acme"}), "ladder": (f"acme/{model}",)} | policy
        return Router([home], {"acme": (profile, away)}, Policy(**given), ledger, purse=purse), home, away

    return make


async def run(router: Router, request: Any, **context: Any) -> list[Event]:
    who: dict[str, Any] = {"key_id": "k", **context}
    handling = await router.handle(request, RequestContext("req_1", **who))
    return [event async for event in handling.events]


def booked(ledger: Any, purse: Purse) -> list[tuple[str, int | None]]:
    """The reservations, all ended: (status, nano-dollars that were charged; None: all that was held, or of a released one)."""
    purse.close()
    ledger.flush()
    assert budgets.verify(ledger.engine) == []
    with ledger.engine.connect() as connection:
        rows = connection.execute(select(reservations).order_by(reservations.c.ts)).all()
        theirs = connection.execute(select(attempts).where(attempts.c.backend == "acme")).all()
    assert len(rows) == len(theirs) and "held" not in {row.status for row in rows}
    return [(row.status, None if row.settled_nanousd == row.amount_nanousd else row.settled_nanousd) for row in rows]


@pytest.mark.parametrize(
    ("answer", "paid"),
    [
        (GOOD, ("settled", budgets.nano(PRICE))),
        ([TextDelta("x"), Usage(30, 1), Failure("broke off", 502)], ("settled", None)),  # in full
        ([TextDelta("x"), Finish("stop")], ("settled", None)),
        (Failure("refused", 400), ("released", None)),
    ],
)
async def test_a_call_is_charged_what_it_cost_or_all_that_it_could(
    ledger: Any, purse: Purse, paying: Make, answer: Any, paid: Any
):
    budgets.put(ledger.engine, "key", "k", "day", 1)
    router, _, away = paying()
    away.answers = [answer]
    await run(router, replace(ask(sampling=SamplingParams(max_tokens=20)), model=AWAY))
    assert booked(ledger, purse) == [paid]


async def test_a_client_that_leaves_midway_pays_in_full(ledger: Any, purse: Purse, paying: Make):
    budgets.put(ledger.engine, "all", "", "day", 1)
    router, _, away = paying()
    handling = await router.handle(replace(ask(), model=AWAY), RequestContext("req_1"))
    async for _ in handling.events:
        break
    await handling.events.aclose()
    assert booked(ledger, purse) == [("settled", None)] and away.closed == 1
    assert away.asked[0].sampling.max_tokens == 8192  # no length was said: cut to what the budget bears


async def test_who_reads_no_further_than_the_failure_holds_nothing(ledger: Any, purse: Purse, paying: Make):
    budgets.put(ledger.engine, "key", "k", "day", 1)
    router, _, away = paying()
    away.answers = [Failure("refused", 400)]
    handling = await router.handle(replace(ask(), model=AWAY), RequestContext("req_1", "k"))
    async for event in handling.events:
        assert isinstance(event, Failure)
        break
    await handling.events.aclose()
    assert [status for status, _ in booked(ledger, purse)] == ["released"]


async def test_an_exhausted_budget_is_told_without_a_time_to_come_back(ledger: Any, paying: Make):
    budgets.put(ledger.engine, "key", "k", "total", 1e-9)
    router, _, away = paying()
    [failure] = await run(router, replace(ask(), model=AWAY))
    assert isinstance(failure, Failure) and away.asked == []
    assert (failure.status, failure.code, failure.retryable, failure.retry_after) == (429, "insufficient_quota", False, None)
    assert len(await run(router, replace(ask(), model=AWAY), key_id="other")) == 3  # not theirs


async def test_a_jobs_budget_is_the_jobs(ledger: Any, paying: Make):
    budgets.put(ledger.engine, "job", "review", "day", 1e-9)
    router, _, away = paying()
    [failure] = await run(router, replace(ask(), model=AWAY), job="review")
    assert isinstance(failure, Failure) and "review" in failure.message and away.asked == []
    assert len(await run(router, replace(ask(), model=AWAY))) == 3


async def test_what_has_no_price_cannot_be_paid_from_a_budget(ledger: Any, paying: Make):
    router, _, away = paying("nobody-knows-me")
    request = replace(ask(), model="acme/nobody-knows-me")
    assert len(await run(router, request)) == 3  # no budget, no question
    budgets.put(ledger.engine, "key", "k", "day", 5)
    await asyncio.sleep(1.1)
    [failure] = await run(router, request)
    assert isinstance(failure, Failure) and failure.status == 403 and "no price is known" in failure.message
    assert len(away.asked) == 1


async def test_escalations_judges_and_shadows_are_paid_for(ledger: Any, purse: Purse, paying: Make):
    budgets.put(ledger.engine, "key", "k", "day", 1)
    router, home, away = paying(shadow=1.0)
    judge = {"type": "judge", "rubric": "good", "model": AWAY}
    opinion: list[Event] = [TextDelta('{"score": 1, "why": ""}', tokens=1), Usage(50, 10), Finish("stop")]
    away.answers = [GOOD, opinion, opinion, GOOD]
    await run(router, ask(extras=Extras((OBJECT, judge))))  # not local: an answer and its judge
    home.answers = ["{}"]
    await run(router, ask(extras=Extras((OBJECT, judge))))  # local: a judge, and a shadow
    await settled(router)
    assert [status for status, _ in booked(ledger, purse)] == ["settled"] * 4
    assert sorted(request.sampling.max_tokens == 160 for request in away.asked) == [False, False, True, True]


async def test_what_runs_here_needs_no_money(ledger: Any, purse: Purse, paying: Make):
    budgets.put(ledger.engine, "all", "", "total", 0)
    router, home, _ = paying()
    await run(router, replace(ask(), model="local"))
    assert len(home.asked) == 1 and booked(ledger, purse) == []


async def test_without_its_budgets_nothing_is_bought(ledger: Any, paying: Make, monkeypatch: pytest.MonkeyPatch):
    budgets.put(ledger.engine, "key", "k", "day", 5)
    router, _, away = paying()

    def full(*_: Any, **__: Any) -> None:
        raise OperationalError("", {}, Exception("disk full"))

    monkeypatch.setattr(budgets, "reserve", full)
    [failure] = await run(router, replace(ask(), model=AWAY))
    assert isinstance(failure, Failure) and failure.status == 503 and away.asked == []


# ------------------------------------------------------------------------------------------------------ a key's scopes


async def test_a_keys_scopes_are_gates(paying: Make):
    router, _, away = paying()
    for words in (["local"], ["supplier:other"], ["data:mail"]):
        with pytest.raises(Forbidden):
            await run(router, replace(ask(), model=AWAY), scopes=parse(words))
    assert away.asked == []
    events = await run(router, ask(extras=Extras((OBJECT,))), scopes=parse(["local"]))
    assert isinstance(events[-1], Failure) and "supplier" in events[-1].message
