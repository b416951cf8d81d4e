"""kill -9 under load: no settled row is lost or doubled, and no call that a supplier has answered is left unpaid.

`BASELOAD_KILLS=100 pytest tests/ledger/test_killed_while_paying.py -s --timeout 0` does it a hundred times on each database.
"""

import asyncio
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import Engine, select

from baseload.ledger import Ledger, budgets, keys
from baseload.ledger.schema import attempts, requests, reservations

from ..e2e.counting import MODEL, Counting, counting
from ..e2e.surfaces import SURFACES, ask

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("BASELOAD_KILLS", "4"))
AT_ONCE = 24
SERVER = Path(__file__).parents[1] / "e2e" / "paying_server.py"


@contextmanager
def serving(url: str, supplier: Counting) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The server's process and address; it is killed at the block's end, if not before."""
    command = [sys.executable, str(SERVER), url, supplier.url]
    env = {name: value for name, value in os.environ.items() if not name.startswith("BASELOAD_")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)
    assert process.stdout
    port = process.stdout.readline().strip()
    assert port, "the server did not start"
    yield process, f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


def books(engine: Engine) -> dict[str, dict[str, Any]]:
    """What is final: settled reservations, ended requests, ended attempts, by their ids."""
    with engine.connect() as connection:
        paid = connection.execute(select(reservations.c.id, reservations.c.settled_nanousd, reservations.c.status)).all()
        ended = connection.execute(select(requests.c.id, requests.c.status).where(requests.c.status == "done")).all()
        columns = (attempts.c.id, attempts.c.prompt_tokens, attempts.c.completion_tokens, attempts.c.retail_usd)
        tried = connection.execute(select(*columns).where(attempts.c.duration_s.is_not(None))).all()
    return {
        "reservations": {row[0]: tuple(row[1:]) for row in paid if row.status in ("settled", "released")},
        "requests": {row[0]: tuple(row[1:]) for row in ended},
        "attempts": {row[0]: tuple(row[1:]) for row in tried},
    }


async def load(
    url: str, secret: str, process: Any, after_s: float, heard: dict[str, float], engine: Engine
) -> tuple[float, dict[str, dict[str, Any]]]:
    """Many clients ask again and again until the server is killed; when that was, and the books just before it. `heard`: whole
    answers, and when they came."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(60)) as session:

        async def client(n: int) -> None:
            rng = random.Random(n)
            while process.poll() is None:
                model, stream = rng.choice((f"acme/{MODEL}", f"claude/{MODEL}")), rng.random() < 0.5
                one = await ask(session, url, rng.choice(SURFACES), model, "hi", 9, stream=stream, key=secret)
                if one.used:
                    heard[one.id] = time.monotonic()
                elif one.status == 0:
                    return

        clients = [asyncio.create_task(client(n)) for n in range(AT_ONCE)]
        while not heard:
            await asyncio.sleep(0.01)
        await asyncio.sleep(after_s)
        before = await asyncio.to_thread(books, engine)
        process.kill()
        killed = time.monotonic()
        await asyncio.gather(*clients)
        return killed, before


def test_kills_lose_and_double_no_settled_row(url: str):
    ledger, rng = Ledger.open(url), random.Random(5)
    engine = ledger.engine
    key, secret = keys.create(engine, "k")
    budgets.put(engine, "key", key.id, "total", 10**6)
    everybody: set[str] = set()
    lost: list[float] = []  # of rows that were batched: how long before the kill their answer had come
    with counting() as supplier:
        for _ in range(KILLS):
            heard: dict[str, float] = {}
            with serving(url, supplier) as (process, address):
                known = books(engine)
                killed, before = asyncio.run(load(address, secret, process, rng.uniform(0, 0.6), heard, engine))
                process.wait()
            after = books(engine)
            for table, rows in (*known.items(), *before.items()):
                assert {id: after[table].get(id) for id in rows} == rows
            everybody |= heard.keys()
            lost += [killed - when for id, when in heard.items() if id not in after["requests"]]
        budgets.expire(engine, all_held=True)  # SQLite's servers did so at their start; the last one has had no other
        with engine.connect() as connection:
            paid = connection.execute(select(reservations)).all()
        assert not everybody - {row.request_id for row in paid}  # what was answered had been reserved, durably
        assert max(Counter(row.request_id for row in paid).values()) == 1
        kinds = Counter(row.status for row in paid)
        assert kinds["held"] == 0 and budgets.verify(engine) == []
        charged = kinds["settled"] + kinds["expired"]
        assert len(supplier.calls) <= charged <= len(supplier.calls) + KILLS * AT_ONCE
        [budget] = budgets.listed(engine)
        assert {row.settled_nanousd for row in paid if row.settled_nanousd} == {paid[0].amount_nanousd}
        assert budgets.nano(budget.spent_usd) == charged * paid[0].amount_nanousd
    oldest = f", the oldest of them {max(lost) * 1000:.0f} ms before its kill" if lost else ""
    print(f"\n{KILLS} kills, {len(everybody)} answers, {dict(kinds)}; {len(lost)} answers' batched rows lost{oldest}")
    ledger.close()
