"""What if: the present terms give the recorded bill, other ones what the records can tell, and the rest is counted by name."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from baseload.cli.main import build
from baseload.ledger.ledger import Ledger
from baseload.ledger.outcomes import TrainingRow, training_rows
from baseload.ledger.rows import OutcomeRow
from baseload.ledger.texts import kept
from baseload.ledger.whatif import Terms, WhatIf, as_recorded, compare
from baseload.router import Policy, RequestContext
from baseload.router.placement import parse_rules
from baseload.router.policy import Rung
from baseload.router.reroute import Places, course
from baseload.wire import neutral
from baseload.wire.backend import ModelInfo
from baseload.wire.chat import ChatRequest, Extras, Failure, Finish, TextDelta, Usage
from baseload.wire.errors import BaseloadError

from .routed import AWAY, OBJECT, ask, router_of

OTHER = "acme/gpt-4.1"
RUNGS = {name: Rung(name, ModelInfo(name, 9000, tools=True), "acme") for name in (AWAY, OTHER)}
PLACES = Places(RUNGS, ["small"])
TERMS = Terms(providers={"acme": "openai"})
POLICY = Policy(allowed_suppliers=frozenset({"acme"}), ladder=(AWAY,), data_classes={"public": frozenset({"acme"})})
CHECKED = Extras(checks=(OBJECT,))
SETTINGS = f"""
[models]
serve = ["small"]
[router]
allowed_suppliers = ["acme"]
ladder = ["{AWAY}"]
[data_classes]
public = ["acme"]
[[rules]]
name = "away"
place = "{AWAY}"
task = "mail"
[suppliers.acme]
base_url = "http://127.0.0.1:1"
price_provider = "openai"
models = [{{id = "gpt-4o-mini", context_length = 9000, tools = true}}]
"""


def words(text: str, prompt: int = 4000, completion: int = 900, cached: int = 1000) -> list[Any]:
    usage = Usage(prompt, completion, cached, device_seconds=0.5)
    return [TextDelta(text, tokens=2), usage, Finish("stop")]


async def one(ledger: Ledger, name: str, request: ChatRequest, local: Any, away: Any = (), **policy: Any) -> None:
    router, home, supplier = router_of(ledger, data_classes=POLICY.data_classes, **policy)
    home.answers, supplier.answers = list(local), list(away)
    with contextlib.suppress(BaseloadError):  # where a gate denies it
        handling = await router.handle(request, RequestContext(name))
        [event async for event in handling.events]
    await asyncio.gather(*router._shadows._running)
    await router.close()


async def traffic(ledger: Ledger) -> list[TrainingRow]:
    """Kept, escalated, failed in vain, denied, asked for by name, sent away by a rule, and one whose supplier fails."""
    for i in range(12):
        await one(ledger, f"kept{i}", ask(f"kept {i}", extras=CHECKED), [words('{"a": 1}')])
        away = [words('{"a": 2}', 3000 + 100 * i, 700 + i)]
        await one(ledger, f"escalated{i}", ask(f"hard {i}", extras=CHECKED), [words("no")], away)
    await one(ledger, "vain", ask("vain", extras=CHECKED), [words("no")], [words("neither")])
    secret = replace(ask("secret"), model=AWAY, extras=Extras(data_class="medical"))
    await one(ledger, "denied", secret, [], [])
    await one(ledger, "named", replace(ask("named"), model=AWAY), [], [words("yes")])
    await one(ledger, "down", ask("down", extras=CHECKED), [words("no")], [Failure("it is down", 503, retryable=True)])
    rules = parse_rules([{"name": "away", "place": AWAY, "task": "mail"}])
    await one(ledger, "ruled", ask("dear sir", extras=Extras(task="mail")), [], [words("dear madam")], rules=rules)
    ledger.flush()
    return list(training_rows(ledger.engine))


def under(rows: Sequence[TrainingRow], policy: Policy | None, terms: Terms = TERMS, texts: Any = None) -> WhatIf:
    courses = [as_recorded(r) if policy is None else course(r, policy, PLACES, (texts or {}).get(r.request_id)) for r in rows]
    return compare(zip(rows, courses, strict=True), terms)


RULED = replace(POLICY, rules=parse_rules([{"name": "away", "place": AWAY, "task": "mail"}]))


async def test_the_present_policy_and_prices_give_the_recorded_bill(ledger: Ledger):
    rows = await traffic(ledger)
    found = under(rows, RULED)
    assert (found.recorded.tasks, found.recorded.accepted, found.recorded.supplier_usd > 0.01) == (29, 26, True)
    assert found.then == found.recorded and found.unknown == {}
    assert ledger.report().total.retail_usd == pytest.approx(found.recorded.supplier_usd, abs=1e-12)
    priced = under(rows, RULED, replace(TERMS, usd_per_hour=2.0))
    local = sum(a["backend"] == "local" for row in rows for a in row.attempts)
    assert priced.then == priced.recorded and priced.then.local_usd == pytest.approx(local * 0.5 / 3600 * 2)
    assert priced.then.best is not None and priced.then.best.usd is not None and priced.then.best.low is not None
    assert priced.then.best.usd == pytest.approx((priced.then.supplier_usd + priced.then.local_usd) / 26)


async def test_without_suppliers_what_they_did_is_lost_and_known_to_be(ledger: Ledger):
    found = under(await traffic(ledger), Policy())
    assert (found.then.accepted, found.then.unknown, found.then.supplier_usd) == (12, 1, 0.0)
    assert list(found.unknown) == ["what small would have answered: it was not asked"]  # the letter that the rule sent away


async def test_a_place_that_was_never_asked_is_not_guessed_at(ledger: Ledger):
    found = under(await traffic(ledger), replace(RULED, ladder=(OTHER, AWAY)))
    assert found.unknown == {f"what {OTHER} would have answered: it was not asked": 14}
    assert found.then.unknown == 14 and found.then.accepted == 14
    assert found.then.best and found.then.worst and found.then.best.accepted == 28 and found.then.worst.accepted == 14


async def test_a_supplier_asked_first_is_known_only_where_a_shadow_was_judged(ledger: Ledger):
    for i in range(6):
        asked = ask(f"both {i}", extras=CHECKED)
        await one(ledger, f"both{i}", asked, [words('{"a": 1}')], [words('{"b": 1}' if i else "no")], shadow=1.0)
    ledger.flush()
    rows = list(training_rows(ledger.engine))
    away_only = replace(
        POLICY, rules=parse_rules([{"name": "all", "place": AWAY, "only": True, "task": ""} | {"tools_at_most": 9}])
    )
    asked = {r.request_id: ask(r.request_id, extras=CHECKED) for r in rows}
    found = under(rows, away_only, texts=asked)
    assert (found.then.accepted, found.then.unknown, found.then.routes) == (5, 0, {AWAY: 5, "nobody": 1})
    assert found.then.supplier_usd == pytest.approx(found.recorded.supplier_usd)  # shadows then, answers now
    fewer = under(rows, replace(POLICY, shadow=0.0))
    assert (fewer.then.supplier_usd, fewer.then.accepted) == (0.0, 6)
    gap = under(rows, replace(POLICY, shadow=1.0, air_gap=True))  # where no supplier may be asked, no shadow is
    assert (gap.then.supplier_usd, gap.then.accepted, gap.unknown) == (0.0, 6, {})


async def test_a_rule_that_reads_the_text_needs_the_text(ledger: Ledger):
    ledger.keep_text = True
    await one(ledger, "letter", ask("a letter", extras=CHECKED), [words("no")], [words("{}")])
    ledger.flush()
    rows = list(training_rows(ledger.engine))
    at_home = replace(
        POLICY, rules=parse_rules([{"name": "letters", "place": "local", "only": True, "last_contains": "letter"}])
    )
    blind = under(rows, at_home)
    assert blind.unknown == {"whether the rule letters holds: it looks at the text, which was not kept": 1}
    texts = {"letter": neutral.decode(kept(ledger.engine, ["letter"])["letter"].asked or {})}
    seen = under(rows, at_home, texts=texts)
    assert (seen.unknown, seen.then.accepted, seen.then.supplier_usd) == ({}, 0, 0.0)


async def test_other_prices_and_another_model(ledger: Ledger):
    rows = await traffic(ledger)
    listed = {
        "input": Decimal("0.15"),
        "cache_read": Decimal("0.075"),
        "cache_write": Decimal("0.15"),
        "output": Decimal("0.60"),
    }
    twice = replace(TERMS, own={AWAY: {kind: 2 * price for kind, price in listed.items()}})
    assert under(rows, None, twice).then.supplier_usd == pytest.approx(2 * under(rows, None).then.supplier_usd)
    other = under(rows, None, replace(TERMS, instead=OTHER))
    assert (other.then.accepted, other.then.unknown) == (12, 16)
    assert list(other.unknown) == [f"whether {OTHER}, which was not asked, would have been accepted"]
    assert other.then.supplier_usd > 5 * other.recorded.supplier_usd and sum(other.assumed.values()) >= 15


async def test_what_people_said_of_an_answer_counts(ledger: Ledger):
    rows = await traffic(ledger)
    kept_answer = next(r for r in rows if r.request_id == "kept0").attempts[0]["id"]
    ledger.add(OutcomeRow("kept0", kept_answer, "", False, ts=9e9, source="audit"))
    ledger.flush()
    assert under(list(training_rows(ledger.engine)), RULED).then.accepted == 25


def test_the_command_gives_both_bills_and_names_what_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BASELOAD_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    books = Ledger.open(f"sqlite:///{tmp_path}/ledger.db")
    asyncio.run(traffic(books))
    books.close()
    (tmp_path / "same.toml").write_text(SETTINGS)
    (tmp_path / "alone.toml").write_text(SETTINGS.replace("[router]", "[router]\nair_gap = true"))
    ran: Callable[..., Any] = lambda *w: CliRunner().invoke(build("ledger"), ["ledger", "whatif", *w])  # noqa: E731
    same = json.loads(ran("--policy", str(tmp_path / "same.toml"), "--json").stdout)
    assert same["then"] == same["recorded"] and same["unknown"] == {} and same["recorded"]["tasks"] == 29
    told = ran("--policy", str(tmp_path / "alone.toml"))
    assert told.exit_code == 0 and "were none of the 1 accepted" in told.stdout and "it was not asked" in told.stdout
