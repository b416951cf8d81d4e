"""`baseload keys`: a secret is shown once, what is revoked holds no more, budgets are set and lifted."""

import json
from pathlib import Path
from typing import Any

import pytest

from baseload.ledger import budgets, keys
from baseload.ledger.ledger import connect


def made(cli: Any, *words: str) -> dict[str, Any]:
    result = cli("keys", "create", "laptop", *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_key_is_made_listed_and_revoked(cli: Any, home: Path):
    key = made(cli, "--model", "auto", "--supplier", "acme", "--data-class", "mail", "--rpm", "6", "--tpm", "900", "--admin")
    assert key["scopes"] == ["model:auto", "supplier:acme", "data:mail", "rpm:6", "tpm:900", "admin"]
    engine = connect(f"sqlite:///{home}/ledger.db")
    found = keys.find(engine, key["secret"])
    assert found and found.id == key["id"]
    listed = cli("keys", "list")
    assert key["id"] in listed.stdout and "rpm:6" in listed.stdout and key["secret"] not in listed.stdout
    assert key["secret"] not in cli("keys", "list", "--json").stdout
    assert cli("keys", "revoke", key["id"]).exit_code == 0
    assert keys.find(engine, key["secret"]) is None and "revoked" in cli("keys", "list").stdout
    again = cli("keys", "revoke", key["id"])
    assert again.exit_code == 1 and len(again.stderr.splitlines()) == 1


def test_budgets_are_set_shown_and_lifted(cli: Any, home: Path):
    key = made(cli, "--day", "5")["id"]
    engine = connect(f"sqlite:///{home}/ledger.db")
    assert cli("keys", "budget", key, "--total", "0.1").exit_code == 0
    assert cli("keys", "budget", "--job", "review", "--day", "2").exit_code == 0
    assert cli("keys", "budget", "--all", "--day", "7").exit_code == 0
    limits = {b.id: str(b.limit_usd) for b in budgets.listed(engine)}
    assert limits == {"all::day": "7", f"key:{key}:day": "5", f"key:{key}:total": "0.1", "job:review:day": "2"}
    shown = json.loads(cli("keys", "budget", key, "--json").stdout)
    assert {(b["period"], b["limit_usd"], b["spent_usd"]) for b in shown} == {("day", 5.0, 0.0), ("total", 0.1, 0.0)}
    assert cli("keys", "budget", key, "--total", "none").exit_code == 0
    assert f"key:{key}:total" not in {b.id for b in budgets.listed(engine)}


@pytest.mark.parametrize(
    "words",
    [
        ("create", "x", "--model", ""),
        ("create", "x", "--local", "--supplier", "acme"),
        ("create", "x", "--rpm", "0"),
        ("budget", "--day", "5"),
        ("budget", "--all", "--job", "review", "--day", "5"),
        ("budget", "--all", "--day", "-1"),
        ("budget", "--all", "--day", "much"),
        ("budget", "--all", "--day", "NaN"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage_and_changes_nothing(cli: Any, home: Path, words: tuple[str, ...]):
    assert cli("keys", *words).exit_code == 2
    if (home / "ledger.db").exists():
        engine = connect(f"sqlite:///{home}/ledger.db")
        assert keys.listed(engine) == [] and budgets.listed(engine) == []


def test_a_budget_of_nobody_is_refused(cli: Any):
    assert cli("keys", "budget", "000000000000", "--day", "5").exit_code == 1
