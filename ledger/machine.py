"""This machine as the books see it while it serves: what its hour costs now, and what a call took of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from .energy import Sampler
from .machine_cost import Figure, Hardware, request_usd, usd_per_hour
from .rows import AttemptRow


@dataclass(frozen=True)
class Machine:
    """`hardware` None: nobody said what it costs, so that it has energy at most, and no price."""

    hardware: Hardware | None
    sampler: Sampler

    def usd_per_hour(self) -> Figure:
        """C_h with the power of the last ten minutes, or the profile's."""
        if self.hardware is None:
            return Figure(None, "none", "no hardware profile is set")
        return usd_per_hour(self.hardware, self.sampler.power.mean)

    def priced(self, row: AttemptRow) -> AttemptRow:
        """`row` with the energy and the money of its device-seconds; what is not known stays None, and is never 0."""
        seconds = row.device_seconds
        if seconds is None:
            return row
        watts, hour = self.sampler.power.busy, self.usd_per_hour()
        if watts.value is not None:
            row = replace(row, energy_joules=seconds * watts.value, energy_known=watts.known)
        if hour.value is not None:
            row = replace(row, internal_usd=request_usd(seconds, hour.value), internal_known=hour.known)
        return row


def never_falling(read: Callable[[], Iterable[tuple[int, float]]]) -> Callable[[], float]:
    """The sum of counters that come and go (engines are put away and loaded again, and each begins at 0), as one that never
    falls. `read` gives (identity, value)."""
    last: dict[int, float] = {}
    total = [0.0]

    def now() -> float:
        nonlocal last
        found = dict(read())
        total[0] += sum(max(0.0, value - last.get(key, 0.0)) for key, value in found.items())
        last = found
        return total[0]

    return now
