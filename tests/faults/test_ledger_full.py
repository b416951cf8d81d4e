"""A book that can't be written: what costs money is refused at once, free work goes on while there is room to remember it, and
no row is lost that was promised to be kept."""

import asyncio
import logging
import socket
import sqlite3
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from baseload.ledger import EgressRow, Ledger, LedgerError, OutcomeRow, RequestRow, writer
from baseload.router import Policy, Router
from baseload.router.router import RequestContext
from baseload.router.suppliers.profile import parse_profile
from baseload.wire.backend import ModelInfo
from baseload.wire.chat import ChatRequest, Event, Failure, Finish, Message, Text, TextDelta, Usage
from baseload.wire.client import HttpBackend
from baseload.wire.egress import Egress, EgressRecord

AWAY = {"base_url": "https://acme.invalid/v1", "models": [{"id": "big", "context_length": 9000}]}


class Echo:
    models = (ModelInfo("tiny", 4096),)

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        yield TextDelta(request.messages[-1].text, tokens=1)
        yield Usage(4, 1)
        yield Finish("stop")

    def count_tokens(self, request: ChatRequest) -> int | None:
        return 4


@dataclass
class House:
    """`broken` is what every commit raises; None: the disk is well."""

    ledger: Ledger
    router: Router
    path: Path
    broken: Exception | None = None

    async def ask(self, model: str, n: int = 0) -> list[Event]:
        request = ChatRequest(model, (Message("user", (Text("hi"),)),))
        handling = await self.router.handle(request, RequestContext(f"r{n}"))
        return [event async for event in handling.events]

    def rows(self, query: str) -> list[Any]:
        with sqlite3.connect(self.path) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            return connection.execute(query).fetchall()


def house_at(path: Path, *, required: bool = True, capacity: int = 20_000) -> tuple[House, HttpBackend]:
    ledger = Ledger.open(f"sqlite:///{path}", required=required)
    ledger._writer._capacity = capacity

    async def record(entry: EgressRecord) -> None:
        await ledger.add_synced(EgressRow(**asdict(entry)))

    profile = parse_profile("acme", AWAY)
    backend = HttpBackend(profile.connection(), profile.models, Egress(frozenset({"acme.invalid"}), record))
    policy = Policy(allowed_suppliers=frozenset({"acme"}))
    house = House(ledger, Router([Echo()], {"acme": (profile, backend)}, policy, ledger), path)

    @event.listens_for(ledger.engine, "commit")
    def _commit(connection: Any) -> None:
        if house.broken:
            raise house.broken

    return house, backend


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "RETRY_S", 0.01)


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that anybody tried to resolve."""
    seen: list[str] = []

    async def resolve(self: Any, host: str, *words: Any, **more: Any) -> Any:
        seen.append(host)
        raise socket.gaierror("no network in tests")

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", resolve)
    return seen


def failures(events: list[Event]) -> list[tuple[int, str]]:
    return [(e.status, e.code or "") for e in events if isinstance(e, Failure)]


FULL = OSError(28, "No space left on device")
LOCKED = OperationalError("COMMIT", {}, sqlite3.OperationalError("database is locked"))


@pytest.mark.parametrize("why", [FULL, LOCKED, OSError(5, "Input/output error")])
async def test_what_costs_money_is_refused_and_free_work_is_written_down_later(
    tmp_path: Path, dialled: list[str], why: Exception
):
    house, backend = house_at(tmp_path / "ledger.db")
    house.broken = why
    assert failures(await house.ask("tiny", 0)) == []
    (refused,) = failures(await house.ask("acme/big", 1))
    assert refused == (503, "ledger_unavailable")
    assert dialled == []  # nothing went out that nobody could have written down
    found = house.ledger.accounts()
    assert (found.healthy, found.rejected, found.dropped) == (False, 0, 0) and found.waiting >= 4 and found.lag_s > 0
    house.broken = None
    house.ledger.flush()
    house.ledger.close()
    await backend.close()
    assert house.rows("SELECT id, status FROM requests ORDER BY id") == [("r0", "done"), ("r1", "failed")]
    assert house.rows("SELECT count(*) FROM attempts WHERE accepted") == [(1,)]
    assert house.rows("SELECT * FROM egress") == []  # a leave that was not given


async def test_when_the_memory_for_it_is_full_new_requests_are_refused_before_a_row_is_lost(tmp_path: Path):
    house, backend = house_at(tmp_path / "ledger.db", capacity=40)
    house.broken = FULL
    refused, answered = 0, 0
    for n in range(60):
        try:
            answered += failures(await house.ask("tiny", n)) == []
        except LedgerError:
            refused += 1
    assert answered > 5 and refused > 5 and answered + refused == 60
    house.broken = None
    house.ledger.close()
    await backend.close()
    assert house.rows("SELECT count(*) FROM requests WHERE status = 'done'") == [(answered,)]
    assert house.rows("SELECT count(*) FROM attempts WHERE accepted") == [(answered,)]


async def test_where_the_books_are_not_required_free_work_goes_on_and_says_what_it_loses(
    tmp_path: Path, dialled: list[str], caplog: pytest.LogCaptureFixture
):
    house, backend = house_at(tmp_path / "ledger.db", required=False, capacity=20)
    house.broken = FULL
    with caplog.at_level(logging.ERROR, "baseload.ledger"):
        for n in range(60):
            assert failures(await house.ask("tiny", n)) == []
    assert house.ledger.dropped > 0 and "rows are lost" in caplog.text
    assert failures(await house.ask("acme/big", 60)) == [(503, "ledger_unavailable")] and dialled == []
    house.broken = None
    house.ledger.close()
    await backend.close()
    kept = house.rows("SELECT count(*) FROM requests")[0][0]
    assert 0 < kept < 60 and house.ledger.accounts().dropped == house.ledger.dropped


async def test_many_who_wait_are_all_told_of_their_own_row(tmp_path: Path):
    """Those who ask for a synced row at once are served together: each hears once, of success or of failure."""
    house, backend = house_at(tmp_path / "ledger.db")

    async def dial(n: int) -> bool:
        try:
            await house.ledger.add_synced(EgressRow(f"e{n}", 1.0, "h", 443, "model"))
        except LedgerError:
            return False
        return True

    assert all(await asyncio.gather(*(dial(n) for n in range(100))))
    house.broken = FULL
    assert not any(await asyncio.gather(*(dial(n) for n in range(100, 150))))
    house.broken = None
    given_up = asyncio.create_task(dial(150))
    await asyncio.sleep(0)
    given_up.cancel()  # its row is written all the same
    assert all(await asyncio.gather(*(dial(n) for n in range(151, 200))))
    house.ledger.close()
    await backend.close()
    kept = {int(id[1:]) for (id,) in house.rows("SELECT id FROM egress")}
    assert kept == {*range(100), *range(150, 200)}


def test_a_row_that_starts_nothing_always_finds_room_beside_those_that_do(tmp_path: Path):
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.db")
    ledger._writer._capacity = 10
    event.listen(ledger.engine, "commit", lambda connection: (_ for _ in ()).throw(FULL))
    started = 0
    while started < 50:
        try:
            ledger.add(RequestRow(f"r{started}", 1.0, "p", "m"))
        except LedgerError:
            break
        started += 1
    for n in range(5):
        ledger.add(OutcomeRow("r0", "a0", f"c{n}", True))
    assert 10 <= started <= 20 and ledger.waiting == started + 5
    with pytest.raises(LedgerError, match="unwritten"):
        ledger.close(timeout_s=0.05)
