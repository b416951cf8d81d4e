"""A ledger of its own for each test."""

from pathlib import Path
from typing import Any

import pytest

from baseload.ledger.ledger import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    made = Ledger.open(f"sqlite:///{tmp_path}/ledger.db")
    yield made
    made.close()
