"""The benchmark of the books writes real rows at its rate, and says what it measured."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from baseload.benchmarks import ledger_cost
from baseload.ledger.schema import attempts, egress, outcomes, requests


@pytest.mark.parametrize("mode", ["local", "supplier"])
def test_each_request_is_written_whole(tmp_path: Path, mode: str):
    ledger = ledger_cost.ledger_of(tmp_path)
    traffic = ledger_cost.Traffic(ledger, mode, checks=True)
    _, sent, _ = asyncio.run(ledger_cost.spend(traffic, rate=200, seconds=0.3))
    ledger.flush()
    with ledger.engine.connect() as connection:

        def count(table: Any, *where: Any) -> int:
            return connection.execute(select(func.count()).select_from(table).where(*where)).scalar_one()

        assert sent == 60
        assert count(requests, requests.c.status == "done") == count(attempts, attempts.c.accepted) == count(outcomes) == sent
        priced = attempts.c.internal_usd if mode == "local" else attempts.c.retail_usd
        assert count(attempts, priced > 0) == sent
        assert count(egress) == (sent if mode == "supplier" else 0)
    ledger.close()


def test_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--rate", "100", "--seconds", "0.2", "--rounds", "2", "--json", str(tmp_path / "report.json")]
    assert ledger_cost.main(words) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert [line["mode"] for line in report["lines"]] == ["local", "supplier"]
    assert [line["rows"] for line in report["lines"]] == [2 * 20 * 4, 2 * 20 * 5]
    assert "wanted: at most 0.3 ms" in capsys.readouterr().out
