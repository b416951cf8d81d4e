"""The made-up ledger holds what was asked for, and the console's windows find it."""

import time
from pathlib import Path

from baseload.benchmarks.console_books import fill, measure
from baseload.ledger.ledger import Ledger


def test_a_made_up_ledger_is_measured(tmp_path: Path):
    ledger, now = Ledger.open(f"sqlite:///{tmp_path}/ledger.db"), time.time()
    fill(ledger.engine, 900, now)
    found = measure(ledger.engine, now)
    total = ledger.report().total
    ledger.close()
    assert total.requests == 900
    assert 0.1 < total.escalated < 0.2
    assert 850 <= found["30d"]["requests"] <= 900  # its oldest day may have begun before the window's
    assert 1 <= found["1h"]["requests"] <= found["24h"]["requests"] <= 31
    assert all(found[name]["longest"] <= found[name]["whole"] for name in ("1h", "24h", "7d", "30d"))
