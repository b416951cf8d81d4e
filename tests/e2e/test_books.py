"""The books of a real server on the real model: its seconds are all accounted for, and company makes tokens cheaper."""

import asyncio
import json
import time
from typing import Any

import aiohttp
import pytest
from typer.testing import CliRunner

from baseload.cli.ledger import app
from baseload.ledger.ledger import open_for_reading
from baseload.ledger.live import Books, books
from baseload.ledger.machine_cost import profile

from .conftest import Server, Start

pytestmark = pytest.mark.slow

CONFIG = '[hardware]\nprofile = "example-workstation"\n'
ROUNDS, TOKENS = 3, 48


async def _ask(session: aiohttp.ClientSession, n: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"{n} things to know about number {n}:"}]
    body = {"model": "local", "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0, "messages": messages}
    async with session.post("/v1/chat/completions", json=body) as answer:
        assert answer.status == 200
        return await answer.json()


async def _together(server: Server, at_once: int, first: int, total: int) -> tuple[float, float]:
    """`total` requests, `at_once` of them at any time; from when to when."""
    async with aiohttp.ClientSession(server.url) as session:
        began = time.time()
        for n in range(first, first + total, at_once):
            await asyncio.gather(*(_ask(session, m) for m in range(n, n + at_once)))
        return began, time.time()


def test_every_second_is_accounted_for_and_a_fuller_batch_is_cheaper(start: Start):
    server = start(config=CONFIG)
    began = time.time()
    spans: dict[int, list[tuple[float, float]]] = {1: [], 2: [], 4: []}
    number = 0
    for _ in range(ROUNDS):  # in turns, so that a machine that is slow for a while is so for each
        for at_once in spans:
            spans[at_once].append(asyncio.run(_together(server, at_once, number := number + 4, 4)))
    seen = server.metrics()
    assert seen["baseload_ledger_up"] == 1 and seen["baseload_calls_total"] == ROUNDS * 3 * 4
    assert 0 < seen["baseload_device_seconds_total"] < time.time() - began
    assert seen["baseload_machine_usd_per_hour"] == pytest.approx(0.147252, abs=1e-5)
    assert server.stop() == 0
    until = time.time()
    engine = open_for_reading(f"sqlite:///{server.home}/ledger.db")
    found = books(engine, began - 300, until, profile("example-workstation"))

    # What the engine counted of its own steps, what the requests' rows bear, and the sampler's clock: accounts of one time.
    asked = ROUNDS * 3 * 4
    assert (found.requests, found.accepted, found.output.tokens) == (asked, asked, asked * TOKENS)
    rows_s = found.input.device_s + found.output.device_s
    assert found.busy_s == pytest.approx(rows_s, rel=0.01)
    assert found.busy_s + found.idle_s == pytest.approx(until - began + 300, rel=0.01)
    assert rows_s <= sum(until - began for of in spans.values() for began, until in of) * 1.01
    parts = (found.input, found.cached, found.output, found.other)
    assert found.machine_usd is not None and found.idle_usd is not None
    assert sum(part.usd or 0.0 for part in parts) + found.idle_usd == pytest.approx(found.machine_usd)
    assert 0 < found.input.device_s < found.output.device_s

    def price(at_once: int) -> float:
        """Dollars for a million tokens of answers, in the busy time of all rounds."""
        each: list[Books] = [books(engine, *span, profile("example-workstation")) for span in spans[at_once]]
        return sum(b.output.usd or 0.0 for b in each) / sum(b.output.tokens for b in each) * 1e6

    prices = {at_once: price(at_once) for at_once in spans}
    print(f"$ for a million tokens of answers, by requests at once: {prices}")
    assert prices[1] > prices[2] > prices[4]

    # Each row has its share, labelled by the worst of what it is made of, and the command tells the same.
    with engine.connect() as connection:
        attempts = connection.exec_driver_sql("SELECT device_seconds, energy_joules, energy_known, internal_usd FROM attempts")
        assert all(joules == pytest.approx(s * 250) and known == "assumed" and usd > 0 for s, joules, known, usd in attempts)
    words = ["report", "--db", f"{server.home}/ledger.db", "--hardware", "example-workstation", "--json"]
    said = json.loads(CliRunner().invoke(app, words).output)
    assert said["books"]["output"]["tokens"] == found.output.tokens
    assert said["books"]["output"]["usd"] == pytest.approx(found.output.usd)
