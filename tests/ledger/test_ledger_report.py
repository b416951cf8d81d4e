"""`baseload ledger report`: the worked example of docs/costs.md to its last digit, and whom the machine worked for."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from baseload.cli.ledger import app
from baseload.ledger import AttemptRow, Ledger, RequestRow
from baseload.ledger.groups import MONDAY_S, WEEK_S, groups, heavy
from baseload.ledger.live import books
from baseload.ledger.machine_cost import profile

PAGE = Path(__file__).parents[2] / "docs" / "costs.md"
DAY = 86_400


def write(ledger: Ledger, id: str, ts: float, backend: str = "local", key: str | None = None, **attempt: Any) -> None:
    job, task = attempt.pop("job", None), attempt.pop("task_class", None)
    ledger.add(RequestRow(id, ts, "p", "auto", status="done", finished_ts=ts + 1, job=job, key_id=key, task_class=task))
    values: dict[str, Any] = {"duration_s": 1.0, "accepted": True}
    ledger.add(AttemptRow(f"{id}a", id, 0, backend, "m", ts, **(values | attempt)))


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["report", *words])
    return done.exit_code, done.output


@pytest.fixture
def day(tmp_path: Path) -> list[str]:
    """The words that report on the page's day: 6 h of work, 6 + 4 Mtok in, 2 Mtok out, a request of 12 s among them."""
    ledger, now = Ledger.open(f"sqlite:///{tmp_path}/ledger.db"), time.time()
    tokens: dict[str, Any] = {"prompt_tokens": 10_000, "cached_tokens": 4_000, "completion_tokens": 2_000}
    write(ledger, "r", now - 3600, job="example", key="ann", device_seconds=12.0, input_seconds=3.0, **tokens)
    for i in range(999):
        seconds: dict[str, Any] = {"device_seconds": 21_588 / 999, "input_seconds": 5_397 / 999}
        write(ledger, f"r{i}", now - DAY + 60 + i * 80, job="rest", key=f"user{i % 4}", **seconds, **tokens)
    ledger.close()
    (tmp_path / "api.toml").write_text('["api/model"]\ninput = 0.4\noutput = 0.4\n')
    words = ["--db", f"{tmp_path}/ledger.db", "--hardware", "example-workstation", "--since", "24h", "--by", "job"]
    return [*words, "--reference", "api/model", "--override", f"{tmp_path}/api.toml"]


def test_the_worked_example_of_the_page(day: list[str]):
    code, text = run(*day, "--json")
    assert code == 0, text
    said = json.loads(text)
    machine, found = said["machine"], said["books"]
    tokens = (found["input"]["tokens"], found["cached"]["tokens"], found["output"]["tokens"])
    assert tokens == (6_000_000, 4_000_000, 2_000_000)
    (request,) = [group for group in said["groups"] if group["group"] == "example"]
    lines = {
        "CRF": machine["capital_recovery"],
        "C_cap": machine["capital_usd"],
        "C_pwr": machine["power_usd"],
        "C_ops": machine["ops_usd"],
        "C_h": found["usd_per_hour"]["value"],
        "day": found["machine_usd"],
        "idle": found["idle_usd"],
        "usage": found["total"]["usage_usd"],
        "usage:in": found["input"]["usage_usd"],
        "usage:out": found["output"]["usage_usd"],
        "allocation": found["total"]["allocation_usd"],
        "allocation:in": found["input"]["allocation_usd"],
        "allocation:out": found["output"]["allocation_usd"],
        "request": request["usage_usd"],
        "avoided": said["beside"]["avoided_usd"],
        "margin": said["beside"]["margin"],
        "u*": said["beside"]["break_even_utilisation"],
    }
    printed = {name: float(value) for name, value in re.findall(r"^\| (\S+) \|.*\| \$?([\d.]+) \|$", PAGE.read_text(), re.M)}
    assert set(printed) == set(lines)
    for name, value in lines.items():
        assert value == pytest.approx(printed[name], abs=5.1e-5), name
    assert found["usd_per_hour"]["known"] == "assumed"  # the profile's word, in every figure made of it


def test_the_same_for_people(day: list[str]):
    code, text = run(*day)
    assert code == 0, text
    for line in ("busy 25.0% of the time", "break-even at 18.4% busy", "margin 26.4%", "assumed: as many tokens"):
        assert line in text
    (row,) = [line.split() for line in text.splitlines() if line.startswith("output")]
    assert row[1] == "2,000,000" and row[-2:] == ["$0.331318", "$1.325273"]


def test_without_a_profile_the_work_is_shown_and_has_no_price(day: list[str]):
    code, text = run(*day[:2], "--since", "24h", "--hardware", "")
    assert code == 0 and "busy 25.0%" in text and "no hardware profile is set" in text
    (row,) = [line.split() for line in text.splitlines() if line.startswith("idle")]
    assert "$0" not in " ".join(row)


def test_an_empty_ledger_and_a_price_that_nobody_knows(tmp_path: Path, day: list[str]):
    Ledger.open(f"sqlite:///{tmp_path}/empty.db").close()
    code, text = run("--db", f"{tmp_path}/empty.db")
    assert code == 0 and "total" in text
    code, text = run(*day[:2], "--reference", "nobody/nothing")
    assert code == 1 and "No price is known" in text
    code, text = run(*day[:2], "--by", "colour")
    assert code == 2


WEEK = 2950  # weeks after the first Monday
BOX = profile("example-workstation")


def at(week: int, hour: float = 1.0) -> float:
    return MONDAY_S + week * WEEK_S + hour * 3600


def test_groups_bear_idle_time_by_their_share_and_add_up(url: str):
    ledger = Ledger.open(url)
    write(ledger, "a", at(WEEK), key="ann", task_class="mail", device_seconds=300.0, energy_joules=5.0, completion_tokens=7)
    write(ledger, "b", at(WEEK), key="bob", task_class="mail", device_seconds=100.0, completion_tokens=3)
    write(ledger, "c", at(WEEK), backend="far", key="bob", retail_usd=0.25)
    write(ledger, "d", at(WEEK), backend="far", key="eve")
    ledger.flush()
    found = books(ledger.engine, at(WEEK, 0), at(WEEK, 10), BOX)
    users = {group.group: group for group in groups(ledger.engine, "key_id", found)}
    tasks = [(group.group, group.requests, group.tokens) for group in groups(ledger.engine, "task_class", found)]
    ledger.close()
    assert found.machine_usd is not None and users["ann"].allocation_usd == pytest.approx(found.machine_usd * 0.75)
    assert sum(user.allocation_usd or 0 for user in users.values()) == pytest.approx(found.machine_usd)
    assert users["bob"].cost_usd == pytest.approx(found.machine_usd * 0.25 + 0.25)
    assert users["eve"].cost_usd is None and users["eve"].unpriced == 1  # a supplier without a price: not known, not free
    assert (users["ann"].joules, users["bob"].joules) == (5.0, None)
    assert (users["ann"].usage_usd or 0) < (users["ann"].allocation_usd or 0)
    assert tasks == [("mail", 2, 10), ("-", 2, 0)]


def test_heavy_users_week_by_week(url: str):
    """Four weeks of 50 users alike, and one who takes as much as all of them and doubles in the last whole week."""
    ledger = Ledger.open(url)
    for week in range(4):
        for user in range(50):
            write(ledger, f"{week}-{user}", at(WEEK + week), key=f"u{user:02}", device_seconds=1.0)
        write(ledger, f"{week}-whale", at(WEEK + week), key="whale", device_seconds=100.0 if week == 3 else 50.0)
    ledger.flush()
    found = books(ledger.engine, at(WEEK, 0), at(WEEK + 4, 0), BOX)
    seen = heavy(ledger.engine, found)
    few = heavy(ledger.engine, books(ledger.engine, at(WEEK, 0), at(WEEK + 1, 0), BOX))
    ledger.close()
    assert found.machine_usd is not None
    each = found.machine_usd / 450
    assert (seen.user_weeks, seen.users, seen.note) == (204, 51, "")
    assert (seen.p50_usd, seen.p95_usd, seen.p99_usd) == pytest.approx((each, each, 50 * each))
    assert seen.top_share == pytest.approx(250 / 450)
    assert (seen.dearest[0].user, seen.dearest[0].trend, seen.dearest[1].trend) == ("whale", 2.0, 1.0)
    assert seen.trend == pytest.approx(1.5)
    assert list(seen.dearest[0].weeks.values()) == pytest.approx([50 * each] * 3 + [100 * each])
    assert few.p99_usd is None and few.trend is None and "too few samples (51 user-weeks" in few.note
