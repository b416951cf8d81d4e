"""Why a request ran where it ran, as data that can be stored and explained."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class RungDecision:
    """One place that was considered; `gate` and `reason` say why it was not allowed, and are empty if it was."""

    name: str
    allowed: bool
    gate: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Note:
    """One reason for where it ran. `numbers` are what it was drawn from."""

    by: str  # rule | stall | latch | queue | predictor | budget | attempts | confidence | shadow
    why: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """What was asked, where it may run in which order, and what the answer must pass."""

    asked: str
    mode: str  # "local" | "auto" | "supplier"
    rungs: tuple[RungDecision, ...]
    checks: tuple[str, ...] = ()
    buffered: bool = False  # held back until the verdict
    notes: tuple[Note, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For the ledger."""
        rungs = [{"name": r.name, "allowed": r.allowed, "gate": r.gate, "reason": r.reason} for r in self.rungs]
        notes = [{"by": n.by, "why": n.why, "numbers": dict(n.numbers)} for n in self.notes]
        head = {"asked": self.asked, "mode": self.mode, "rungs": rungs, "checks": self.checks, "buffered": self.buffered}
        return {**head, "notes": notes}
