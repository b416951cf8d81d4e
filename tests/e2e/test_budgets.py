"""Money, with the real server: nobody overspends, whoever leaves or dies, and every token is accounted for."""

import asyncio
import itertools
import random
import signal
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import select

from baseload.ledger import budgets, keys
from baseload.ledger.database import connect, prepare
from baseload.ledger.schema import attempts, reservations
from baseload.router.budget import worst_usd
from baseload.router.cost import retail_usd
from baseload.wire.chat import ChatRequest, Message, SamplingParams, Text, Usage

from .counting import AROUND, MODEL, Counting, counting
from .surfaces import SURFACES, Heard, ask

pytestmark = pytest.mark.slow
MOST = 20
TEXT = "tell me something"
ACME, CLAUDE = f"acme/{MODEL}", f"claude/{MODEL}"


def worst(text: str = TEXT) -> Decimal:
    """What one call may cost: exactly what the supplier asks for it."""
    request = ChatRequest("m", (Message("user", (Text(text),)),), sampling=SamplingParams(max_tokens=MOST))
    found = budgets.usd(budgets.nano(worst_usd(request, "openai", MODEL)))
    assert found == budgets.usd(budgets.nano(retail_usd("openai", MODEL, Usage(AROUND + len(text), MOST)) or 0))
    return found


def ledger_of(home: Path) -> Any:
    engine = connect(f"sqlite:///{home}/ledger.db")
    prepare(engine)
    return engine


async def flood(url: str, key: str, n: int = 200) -> list[Heard]:
    """n at once, over every surface, streamed or not; every fifth client leaves after a word."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(120)) as session:
        ways = zip(range(n), itertools.cycle(itertools.product(SURFACES, (ACME, CLAUDE), (False, True))))
        return await asyncio.gather(
            *(
                ask(session, url, surface, model, TEXT, MOST, stream=stream, leave=i % 5 == 4, key=key)
                for i, (surface, model, stream) in ways
            )
        )


def settled(engine: Any, limit_s: float = 30) -> list[Any]:
    """All reservations, once none is held."""
    deadline = time.monotonic() + limit_s
    while True:
        with engine.connect() as connection:
            rows = connection.execute(select(reservations)).all()
        if not any(row.status == "held" for row in rows):
            return list(rows)
        assert time.monotonic() < deadline, Counter(row.status for row in rows)
        time.sleep(0.1)


def test_200_at_once_on_a_budget_for_20(start: Any):
    with counting() as supplier:
        server = start(config=supplier.config())
        engine = ledger_of(server.home)
        key, secret = keys.create(engine, "crowd")
        budgets.put(engine, "key", key.id, "total", 20 * worst())
        time.sleep(1.1)
        heard = asyncio.run(flood(server.url, secret))
        rows = settled(engine)
        [budget] = budgets.listed(engine)
        assert 15 <= len(supplier.calls) <= 20 and budget.spent_usd <= budget.limit_usd and budget.held_usd == 0
        assert Counter(row.status for row in rows)["settled"] == len(supplier.calls) and budgets.verify(engine) == []
        assert {one.status for one in heard} == {200, 402, 429}
        for one in heard:
            assert one.status == 200 or ("retry-after" not in one.headers and "budget" in str(one.error)), one


def test_no_overspend_when_the_server_is_killed_in_the_middle(start: Any):
    with counting() as supplier:
        supplier.pause_s = 0.3
        server = start(config=supplier.config())
        engine = ledger_of(server.home)
        key, secret = keys.create(engine, "crowd")
        budgets.put(engine, "key", key.id, "total", 20 * worst())
        time.sleep(1.1)

        async def killed() -> None:
            asked = asyncio.create_task(flood(server.url, secret))
            while len(supplier.calls) < 5:
                await asyncio.sleep(0.01)
            server.process.send_signal(signal.SIGKILL)
            await asked

        asyncio.run(killed())
        server.process.wait(10)
        before = len(supplier.calls)
        again = start(config=supplier.config(), home=server.home)
        [budget] = budgets.listed(engine)
        assert budget.held_usd == 0 and budget.spent_usd >= before * worst()
        heard = asyncio.run(flood(again.url, secret))
        settled(engine)
        [budget] = budgets.listed(engine)
        assert len(supplier.calls) <= 20 and len(supplier.calls) * worst() <= budget.spent_usd <= budget.limit_usd
        assert budget.held_usd == 0 and budgets.verify(engine) == []
        assert {one.status for one in heard} <= {200, 402, 429} and heard


# ------------------------------------------------------------------------------------------ every token is accounted for


def mixed(n: int, seed: int) -> list[dict[str, Any]]:
    """n requests of all kinds, most of them to suppliers."""
    rng, asked = random.Random(seed), list[dict[str, Any]]()
    for i in range(n):
        text = f"question {i} " + "x" * rng.randrange(40)
        one: dict[str, Any] = {"surface": rng.choice(SURFACES), "model": rng.choice((ACME, CLAUDE)), "text": text}
        one |= {"most": rng.randrange(1, 30), "stream": rng.random() < 0.5}
        judge = {"type": "judge", "rubric": "be good", "model": ACME}
        match rng.choice(
            ("plain", "plain", "plain", "plain", "flaky", "broken", "cut", "leave", "judged", "escalated", "local")
        ):
            case "flaky":
                one["text"] += f" flaky-{i} "
            case "broken" | "cut" as fault:
                one["text"] += f" {fault} "
            case "leave":
                one |= {"text": text + " stall ", "leave": True, "stream": True}
            case "judged":
                one |= {"model": "auto", "most": 4, "baseload": {"checks": [{"type": "regex", "pattern": "words"}, judge]}}
            case "escalated":
                one |= {"model": "auto", "most": 4, "baseload": {"checks": [{"type": "regex", "pattern": "some words"}]}}
            case "local":
                one |= {"model": "local", "most": 4}
            case _:
                pass
        asked.append(one)
    return asked


async def all_of(url: str, asked: list[dict[str, Any]], at_once: int = 40) -> list[Heard]:
    room = asyncio.Semaphore(at_once)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(120)) as session:

        async def one(of: dict[str, Any]) -> Heard:
            async with room:
                return await ask(session, url, **of)

        return await asyncio.gather(*map(one, asked))


def check_tokens(engine: Any, heard: list[Heard], supplier: Counting) -> dict[str, int]:
    """The sum of attempts is what clients were told and what was hidden; the suppliers' part is what they counted."""
    with engine.connect() as connection:
        rows = [dict(row._mapping) for row in connection.execute(select(attempts).order_by(attempts.c.n))]
    told = {one.id: one.used for one in heard if one.used}
    count: Counter[str] = Counter()
    for row in rows:
        pair = (row["prompt_tokens"], row["completion_tokens"])
        shown = row["role"] in ("answer", "repair") and row["error"] is None and told.get(row["request_id"]) == pair
        if shown and row["accepted"]:
            told.pop(row["request_id"])
        count["told" if shown and row["accepted"] else "hidden"] += sum(pair)
        count["all"] += sum(pair)
    assert told == {}, "a client was told what no attempt has used"
    assert count["all"] == count["told"] + count["hidden"]
    assert count["told"] == sum(sum(one.used) for one in heard if one.used)
    theirs = [row for row in rows if row["backend"] != "local"]
    assert (sum(r["prompt_tokens"] for r in theirs), sum(r["completion_tokens"] for r in theirs)) == supplier.tokens
    return dict(count)


def test_500_mixed_requests_are_accounted_for_to_the_token(start: Any):
    with counting() as supplier:
        server = start(config=supplier.config())
        engine = ledger_of(server.home)
        budgets.put(engine, "all", "", "total", 100)
        time.sleep(1.1)
        heard = asyncio.run(all_of(server.url, mixed(500, seed=13)))
        rows = settled(engine)
        time.sleep(1)
        count = check_tokens(engine, heard, supplier)
        assert count["hidden"] and supplier.failed > 20
        with engine.connect() as connection:
            theirs = connection.execute(select(attempts).where(attempts.c.backend != "local")).all()
        # Each call had money held for it, the same money where it was refused and made again; what its price is known of was
        # settled at that, and all else in full.
        again = len(theirs) - len(rows)
        known: dict[str, Counter[int]] = {}
        for row in theirs:
            if row.retail_usd is not None:
                known.setdefault(row.request_id, Counter())[budgets.nano(row.retail_usd)] += 1
        for row in rows:
            paid = row.settled_nanousd or 0
            if known.get(row.request_id, Counter())[paid]:
                known[row.request_id][paid] -= 1
            else:
                assert paid == row.amount_nanousd
        assert again >= 0 and sum(known.values(), Counter()) == Counter({0: again} if again else {})
        assert budgets.verify(engine) == []
