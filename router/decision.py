"""Why a request ran where it ran, as data that can be stored and explained."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RungDecision:
    """One place that was considered; `gate` and `reason` say why it was not allowed, and are empty if it was."""

    name: str
    allowed: bool
    gate: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """What was asked, where it may run in which order, and what the answer must pass."""

    asked: str
    mode: str  # "local" | "auto" | "supplier"
    rungs: tuple[RungDecision, ...]
    checks: tuple[str, ...] = ()
    buffered: bool = False  # held back until the verdict

    def as_json(self) -> dict[str, Any]:
        """For the ledger."""
        rungs = [{"name": r.name, "allowed": r.allowed, "gate": r.gate, "reason": r.reason} for r in self.rungs]
        return {"asked": self.asked, "mode": self.mode, "rungs": rungs, "checks": self.checks, "buffered": self.buffered}
