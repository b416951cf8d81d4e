"""The ledger when the disk fails and when the process is killed."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest
from sqlalchemy import event

from baseload.ledger import AttemptRow, EgressRow, Ledger, LedgerError, RequestRow, writer

ASKED = RequestRow(id="r", ts=1.0, protocol="openai_chat", model_asked="auto")
TRIED = AttemptRow(id="a", request_id="r", n=0, backend="local", model="m", started_ts=1.0)
DIALLED = EgressRow(id="e", ts=1.0, host="h", port=443, purpose="model")


class Disk:
    """Makes commits number `first` to `last` of a ledger fail, as a disk would; counts from 1."""

    def __init__(self, ledger: Ledger, first: int, last: int) -> None:
        self.seen, self.first, self.last = 0, first, last
        event.listen(ledger.engine, "commit", self.on_commit)

    def on_commit(self, connection: Any) -> None:
        self.seen += 1
        if self.first <= self.seen <= self.last:
            raise OSError(28, "No space left on device")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer, "RETRY_S", 0.01)


def ids(path: Path, table: str) -> list[str]:
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [row[0] for row in connection.execute(f"SELECT id FROM {table}")]


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_whichever_commit_fails_nothing_is_lost_or_doubled(tmp_path: Path):
    """Fail the nth commit, n = 1, 2, ... until a whole run passes without reaching it."""
    for nth in range(1, 100):
        path = tmp_path / f"{nth}.db"
        ledger = Ledger.open(f"sqlite:///{path}")
        disk = Disk(ledger, nth, nth)
        for i in range(5):
            ledger.add(replace(ASKED, id=f"r{i}"))
            ledger.add(replace(TRIED, id=f"a{i}", request_id=f"r{i}"))
            ledger.flush()
            ledger.add(replace(ASKED, id=f"r{i}", status="done", finished_ts=2.0))
        ledger.close()
        assert (sorted(ids(path, "requests")), len(ids(path, "attempts"))) == ([f"r{i}" for i in range(5)], 5)
        with sqlite3.connect(path) as connection:
            assert connection.execute("SELECT count(*) FROM requests WHERE status = 'done'").fetchone() == (5,)
        if disk.seen < nth:
            return
    raise AssertionError("no run passed without a failure")


def test_a_failing_disk_shows_and_heals(tmp_path: Path):
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.db")
    disk = Disk(ledger, 1, 10**9)
    ledger.add(ASKED)
    wait_until(lambda: not ledger.healthy)
    assert "No space left" in ledger.reason
    with pytest.raises(LedgerError, match="No space left"):
        ledger.flush(timeout_s=0.1)
    disk.last = 0
    ledger.flush()
    assert (ledger.healthy, ledger.reason, ledger.waiting) == (True, "", 0)
    ledger.close()
    assert ids(tmp_path / "ledger.db", "requests") == ["r"]


async def test_no_leave_without_a_record(tmp_path: Path):
    """A synced row that cannot be written is an error at once, and does not turn up later as if the call had been made."""
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.db")
    disk = Disk(ledger, 1, 10**9)
    ledger.add(ASKED)
    for i in range(3):
        with pytest.raises(LedgerError, match="No space left"):
            await ledger.add_synced(replace(DIALLED, id=f"e{i}"))
    disk.last = 0
    await ledger.add_synced(replace(DIALLED, id="after"))
    ledger.close()
    assert ids(tmp_path / "ledger.db", "egress") == ["after"]
    assert ids(tmp_path / "ledger.db", "requests") == ["r"]


def test_a_full_queue_refuses_new_requests_before_old_ones(tmp_path: Path):
    engine = Ledger.open(f"sqlite:///{tmp_path}/ledger.db")
    small = writer.Writer(engine.engine, capacity=10)
    event.listen(engine.engine, "commit", disk := Disk(engine, 1, 10**9).on_commit)
    for i in range(10):
        small.put(replace(ASKED, id=f"r{i}"))
    wait_until(lambda: small.failure and len(small._queue) == 10)
    with pytest.raises(LedgerError, match="cannot keep up"):
        small.put(replace(ASKED, id="one too many"))
    for i in range(10):
        small.put(replace(ASKED, id=f"r{i}", status="done", finished_ts=2.0))  # what runs may still end
    wait_until(lambda: len(small._queue) == 20)
    with pytest.raises(LedgerError, match="cannot keep up"):
        small.put(TRIED)
    with pytest.raises(LedgerError, match="20 rows unwritten"):
        small.close(timeout_s=0.05)
    assert disk is not None
    engine.close()


def test_a_really_full_database(tmp_path: Path):
    """SQLite's own SQLITE_FULL, by a limit on its pages."""
    path = tmp_path / "ledger.db"
    ledger = Ledger.open(f"sqlite:///{path}")
    limit = [40]
    event.listen(ledger.engine, "begin", lambda c: c.exec_driver_sql(f"PRAGMA max_page_count = {limit[0]}"))
    for i in range(4000):
        ledger.add(replace(ASKED, id=f"r{i}", model_asked="m" * 100))
    wait_until(lambda: not ledger.healthy)
    assert "full" in ledger.reason
    limit[0] = 10**6
    ledger.close()
    assert len(ids(path, "requests")) == 4000


def test_locked_by_another_process_for_a_while(tmp_path: Path):
    path = tmp_path / "ledger.db"
    ledger = Ledger.open(f"sqlite:///{path}?timeout=0.05")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    ledger.add(ASKED)
    wait_until(lambda: "locked" in ledger.reason)
    other.execute("COMMIT")
    other.close()
    ledger.close()
    assert ids(path, "requests") == ["r"]


CHILD = """
import asyncio, os, sys, time
from dataclasses import replace
from baseload.ledger import EgressRow, Ledger, RequestRow

url, kind = sys.argv[1:]
asked = RequestRow(id="", ts=1.0, protocol="p", model_asked="auto")
dialled = EgressRow(id="", ts=1.0, host="h", port=443, purpose="model")

async def write(turn):
    ledger, i = Ledger.open(url), 0
    while True:
        if kind == "egress":
            await ledger.add_synced(replace(dialled, id=f"{turn}-{i}"))
        else:
            ledger.add(replace(asked, id=f"{turn}-{i}"))
            await asyncio.sleep(0.0005)
        os.write(1, f"{i} {time.monotonic()}\\n".encode())
        i += 1

for line in sys.stdin:  # one child for each line, so that the imports are paid once
    if (pid := os.fork()) == 0:
        asyncio.run(write(line.strip()))
    os.write(1, f"pid {pid}\\n".encode())
    os.waitpid(pid, 0)
    os.write(1, b"dead\\n")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("table", "may_lose_s"), [("requests", 0.1), ("egress", 0.0)])
def test_kill_9(tmp_path: Path, table: str, may_lose_s: float):
    """Kill a writing process at random moments: what is missing is younger than 100 ms; of synced rows nothing is missing."""
    path, rng, kept = tmp_path / "ledger.db", random.Random(9), 0
    command = [sys.executable, "-c", CHILD, f"sqlite:///{path}", table]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdin and parent.stdout
    for turn in range(25):
        print(turn, file=parent.stdin, flush=True)
        written = _until_killed(parent.stdout, after=rng.randint(1, 250))
        found = ids(path, table)
        assert len(found) == len(set(found))
        mine = {int(id.partition("-")[2]) for id in found if id.startswith(f"{turn}-")}
        died = max(written.values())
        assert not {i for i, t in written.items() if i not in mine and died - t >= may_lose_s}
        kept += len(mine)
    parent.stdin.close()
    parent.wait()
    assert kept > 500  # the promise was not kept by writing nothing


def _until_killed(output: IO[str], after: int) -> dict[int, float]:
    """Kill the child when it has said that it wrote `after` rows. What it said: number of the row -> its clock, seconds."""
    written: dict[int, float] = {}
    victim = None
    while (line := output.readline()) != "dead\n":
        first, second = line.split()
        if first == "pid":
            victim = int(second)
        else:
            written[int(first)] = float(second)
        if victim and len(written) >= after:
            os.kill(victim, signal.SIGKILL)
            victim = None
    return written
