"""The books on /metrics: tokens and money by place, what nobody knows left out, and a ledger that can't be written is loud."""

import re
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from baseload.ledger import Ledger, budgets
from baseload.ledger.energy import Sampler
from baseload.ledger.machine import Machine
from baseload.ledger.machine_cost import profile
from baseload.router.policy import Policy
from baseload.router.router import Router
from baseload.router.suppliers.profile import parse_profile
from baseload.router.suppliers.resilience import OPEN_AFTER
from baseload.server.build import _breakers
from baseload.server.services import Services
from baseload.wire.backend import ModelInfo
from baseload.wire.chat import ChatRequest, Event, Failure, Finish, Message, Text, TextDelta, Usage


class Echo:
    """A local model that says the last message back and takes 0.02 s of the device, half of it for the prompt."""

    models = (ModelInfo("tiny", 4096),)

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        yield TextDelta(request.messages[-1].text, tokens=1)
        yield Usage(10, 4, 2, device_seconds=0.02, input_seconds=0.01)
        yield Finish("stop")

    def count_tokens(self, request: ChatRequest) -> int | None:
        return 4


def numbers(page: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^(baseload_\S+) ([0-9.e+-]+)$", page, re.MULTILINE)}


@pytest.fixture
def house(serve: Any, tmp_path: Path) -> Iterator[Any]:
    """`house(hardware)` is a client, and the ledger behind it."""
    opened: list[Any] = []

    def begin(hardware: str) -> tuple[httpx2.Client, Ledger]:
        ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.db")
        box = profile(hardware)
        ledger.machine = Machine(box, Sampler([], box, lambda: 0.0, lambda row: None))
        running = serve(started=False)
        services = Services(Router([Echo()], {}, Policy(), ledger), ledger)
        breakers: dict[tuple[str, str], bool] = {("far", "big"): True, ("far", "small"): False}
        running.app.state.life.start(replace(services, accounts=ledger.accounts, breakers=lambda: breakers))
        client = httpx2.Client(base_url=running.url, timeout=20)
        opened.extend((client, running, ledger))
        return client, ledger

    yield begin
    client, running, ledger = opened
    client.close()
    running.stop()
    ledger.close()


def ask(client: httpx2.Client, text: str = "hello") -> Any:
    return client.post("/v1/chat/completions", json={"model": "local", "messages": [{"role": "user", "content": text}]})


def test_what_was_done_and_what_it_cost(house: Any):
    client, ledger = house("example-workstation")
    for _ in range(3):
        assert ask(client).status_code == 200
    time.sleep(0.1)  # a device that worked for 0.06 s has had as much time
    seen = numbers(client.get("/metrics").text)
    tokens = [seen[f'baseload_tokens_total{{kind="{kind}",place="local"}}'] for kind in ("input", "cached", "output")]
    assert tokens == [24, 6, 12]
    assert seen['baseload_calls_total{place="local"}'] == 3
    assert seen["baseload_device_seconds_total"] == pytest.approx(0.06)
    assert seen['baseload_machine_usd_per_hour{known="assumed"}'] == pytest.approx(0.147252, abs=1e-6)
    assert seen["baseload_internal_usd_total"] == pytest.approx(0.06 / 3600 * 0.147252, rel=1e-4)
    usage, allocation = (
        seen[f'baseload_usd_per_million_tokens{{kind="output",reading="{reading}"}}'] for reading in ("usage", "allocation")
    )
    assert usage == pytest.approx(0.03 / 3600 * 0.147252 / 12 * 1e6, rel=1e-4)
    assert allocation > usage and 0 < seen["baseload_utilisation"] < 1  # each read at its own moment of a short life
    assert seen['baseload_power_watts{known="assumed",state="busy"}'] == 250
    assert seen['baseload_breaker_open{model="big",supplier="far"}'] == 1
    assert seen['baseload_breaker_open{model="small",supplier="far"}'] == 0
    assert seen["baseload_ledger_up"] == 1 and seen["baseload_ledger_rows_dropped_total"] == 0
    ledger.flush()
    with ledger.engine.connect() as connection:
        kept = connection.exec_driver_sql("SELECT energy_joules, internal_known FROM attempts").all()
    assert kept == [(pytest.approx(5.0), "assumed")] * 3


def test_without_a_profile_no_money_is_shown_as_none(house: Any):
    client, _ = house("")
    assert ask(client).status_code == 200
    page = client.get("/metrics").text
    for name in ("internal_usd", "usd_per_million", "machine_usd", "idle_usd", "power_watts", "energy_joules"):
        assert name not in page
    assert numbers(page)['baseload_unpriced_calls_total{place="local"}'] == 1


def test_what_is_reserved(house: Any):
    client, ledger = house("")
    budgets.put(ledger.engine, "all", "", "total", 5)
    held = budgets.reserve(ledger.engine, "r", 1.25)
    assert numbers(client.get("/metrics").text)["baseload_reserved_usd"] == 1.25
    assert isinstance(held, str) and budgets.settle(ledger.engine, held, 0.5)
    assert numbers(client.get("/metrics").text)["baseload_reserved_usd"] == 0


async def test_a_suppliers_open_breaker_is_told_by_its_model():
    class Down:
        models = (ModelInfo("acme/big", 9000, local=False),)

        async def generate(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
            yield Failure("down", 503, "server_error", "down")

        def count_tokens(self, request: ChatRequest) -> int | None:
            return None

    table = {"base_url": "http://127.0.0.1:1", "models": [{"id": "big", "context_length": 9000}]}
    guarded = parse_profile("acme", table).guarded(Down())
    for _ in range(OPEN_AFTER):
        async for _event in guarded.generate(ChatRequest("big", (Message("user", (Text("hi"),)),))):
            pass
    assert _breakers({"acme": guarded, "other": Echo()}) == {("acme", "big"): True}
