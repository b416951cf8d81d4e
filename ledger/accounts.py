"""The running account of one process since its start: what ended at each place, what it cost, and how the book itself does.

Nothing here reads the database but the sum of what is reserved, so that a scrape every few seconds costs nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from .energy import Power
from .live import Books, Energy, Totals, reckon
from .machine import Machine
from .rows import AttemptRow


@dataclass
class Place:
    """What ended at one place; `unpriced` counts calls whose price nobody knows, and local work without one."""

    calls: int = 0
    accepted: int = 0
    input_tokens: int = 0  # not cached
    cached_tokens: int = 0
    output_tokens: int = 0
    device_s: float = 0.0
    input_s: float = 0.0
    retail_usd: float = 0.0
    internal_usd: float = 0.0
    joules: float = 0.0
    unpriced: int = 0


@dataclass(frozen=True)
class Accounts:
    """`reserved_usd` None: it can't be read. `lag_s`: how long the oldest row has waited to be written."""

    places: dict[str, Place]
    books: Books | None
    power: Power | None
    joules: float | None
    reserved_usd: float | None
    healthy: bool
    waiting: int
    lag_s: float
    rejected: int
    dropped: int


class Tally:
    """Counts attempts as they end. Only one thread may add; any may read."""

    def __init__(self) -> None:
        self.began = time.time()
        self.places: dict[str, Place] = {}

    def add(self, row: AttemptRow) -> None:
        """An attempt has ended."""
        mine = self.places.setdefault(row.backend, Place())
        mine.calls += 1
        mine.accepted += row.accepted
        mine.input_tokens += row.prompt_tokens - row.cached_tokens
        mine.cached_tokens += row.cached_tokens
        mine.output_tokens += row.completion_tokens
        mine.device_s += row.device_seconds or 0.0
        mine.input_s += row.input_seconds or 0.0
        mine.retail_usd += row.retail_usd or 0.0
        mine.internal_usd += row.internal_usd or 0.0
        mine.joules += row.energy_joules or 0.0
        mine.unpriced += row.retail_usd is None and row.internal_usd is None

    def books(self, machine: Machine, now: float) -> Books:
        """The books since the start, from what is in memory."""
        local = self.places.get("local", Place())
        others = [place for name, place in self.places.items() if name != "local"]
        sampler, power = machine.sampler, machine.sampler.power
        totals = Totals(
            requests=sum(place.calls for place in self.places.values()),
            accepted=local.accepted + sum(place.accepted for place in others),
            input_tokens=local.input_tokens,
            cached_tokens=local.cached_tokens,
            output_tokens=local.output_tokens,
            device_s=local.device_s,
            input_s=local.input_s,
            split_s=local.device_s,
            steps_s=sampler.busy_s,
            supplier_tokens=sum(place.input_tokens + place.cached_tokens + place.output_tokens for place in others),
            supplier_usd=sum(place.retail_usd for place in others),
            unpriced=sum(place.unpriced for place in others),
        )
        spent = now - self.began
        drawn = Energy(sampler.joules, power.mean.known, spent, spent, power.mean.value, power.idle.value)
        return reckon(totals, machine.usd_per_hour(), drawn, self.began, now)
