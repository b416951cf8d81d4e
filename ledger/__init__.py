"""What it cost: requests, attempts, outcomes and what left the house."""

from .ledger import Ledger
from .rows import AttemptRow, EgressRow, OutcomeRow, RequestRow
from .writer import LedgerError

__all__ = ["AttemptRow", "EgressRow", "Ledger", "LedgerError", "OutcomeRow", "RequestRow"]
