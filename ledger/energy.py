"""How much energy the machine took, window by window, and how much of that is known.

The order of preference is that of the figures: counters, else the integral of power readings, else the profile's declared
watts, else none. A window's energy by counter is the difference between its ends and windows share their ends, so that they
add up to the counter's whole. A window is valid (`power_valid`) if no two readings are more than 3 s apart and counter and
integral, where there are both, agree within 5% (the rules of InferenceX' measured power), and if it is long enough for
counters that move every 100 ms. What the machine draws when it rests is kept apart.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from .machine_cost import Figure, Hardware, Known, worst
from .meters import Meter
from .rows import EnergyRow, new_id

log = logging.getLogger("baseload.ledger")

TICK_S = 1.0
WINDOW_S = 30.0
REMEMBER = 20  # windows that the running figures are made of: ten minutes
GAP_S = 3.0
TOLERANCE = 0.05
SHORTEST_S = 10.0
NO_METER = "no meter"


@dataclass(frozen=True)
class Tick:
    """What was read at `at` (monotonic seconds): all meters' joules since they were opened, their watts of that moment (None
    where one can't tell), and the engine's busy seconds since it began."""

    at: float
    joules: float | None
    watts: float | None
    busy_s: float
    broken: bool = False


@dataclass(frozen=True)
class Power:
    """Watts: on average, while the machine worked, and while it rested."""

    mean: Figure
    busy: Figure
    idle: Figure


NOTHING = Figure(None, "none", "no meter, and no watts declared")


def window(ticks: Sequence[Tick], ts: float, source: str, hardware: Hardware | None) -> EnergyRow:
    """The row of these ticks, of which there are at least two; `ts` is when the first was, in seconds since the epoch.

    `source` names the meters; empty where there are none, and then the profile's watts stand in.
    """
    seconds = ticks[-1].at - ticks[0].at
    busy_s = min(seconds, ticks[-1].busy_s - ticks[0].busy_s)  # several engines at once are one busy machine
    rests = [_rests(ticks, i) for i in range(len(ticks) - 1)]
    idle_s = sum(b.at - a.at for (a, b), rest in zip(pairwise(ticks), rests, strict=True) if rest)
    row = EnergyRow(new_id(), ts, seconds, busy_s, idle_s=idle_s)
    if not source:
        return _declared(row, hardware)
    parts = [_joules(a, b) for a, b in pairwise(ticks)]
    if any(part is None for part in parts):
        return _with(row, None, None, "none", source, "a meter did not answer")
    known: Known = "measured"
    unmetered = hardware.unmetered_watts if hardware else None
    if hardware and unmetered is not None:
        known, source = worst("measured", hardware.known), f"{source}, and {unmetered:g} W {hardware.known} for the rest"
    joules = sum(part or 0.0 for part in parts) + (unmetered or 0.0) * seconds
    resting = sum(part or 0.0 for part, rest in zip(parts, rests, strict=True) if rest) + (unmetered or 0.0) * idle_s
    return _with(row, joules, resting if idle_s else None, known, source, _doubt(ticks))


def _rests(ticks: Sequence[Tick], i: int) -> bool:
    """Nothing ended in this tick nor in the next: the time of a step is counted when it ends, which may be in the one after."""
    return i + 2 < len(ticks) and ticks[i].busy_s == ticks[i + 2].busy_s


def _joules(a: Tick, b: Tick) -> float | None:
    """Between two readings, by counter, else by the mean of their powers."""
    if a.joules is not None and b.joules is not None:
        return b.joules - a.joules
    return (a.watts + b.watts) / 2 * (b.at - a.at) if a.watts is not None and b.watts is not None else None


def _doubt(ticks: Sequence[Tick]) -> str:
    """Why the window's energy is not to be relied on; empty: it is."""
    if any(tick.broken for tick in ticks[1:]):
        return "a counter began anew"
    if (gap := max(b.at - a.at for a, b in pairwise(ticks))) > GAP_S:
        return f"{gap:.1f} s without a reading"
    if ticks[-1].at - ticks[0].at < SHORTEST_S:
        return "too short"
    first, last = ticks[0].joules, ticks[-1].joules
    if first is None or last is None or any(tick.watts is None for tick in ticks):
        return ""
    counted = last - first
    integral = sum(((a.watts or 0) + (b.watts or 0)) / 2 * (b.at - a.at) for a, b in pairwise(ticks))
    if abs(counted - integral) > TOLERANCE * counted:
        return f"counter {counted:.0f} J, integral of power {integral:.0f} J"
    return ""


def _declared(row: EnergyRow, hardware: Hardware | None) -> EnergyRow:
    if hardware is None or hardware.watts is None:
        return _with(row, None, None, "none", NOTHING.source, "nothing tells the power")
    rest = hardware.watts if hardware.idle_watts is None else hardware.idle_watts  # not knowing never makes it cheaper
    joules = hardware.watts * row.busy_s + rest * (row.seconds - row.busy_s)
    resting = hardware.idle_watts * row.idle_s if hardware.idle_watts is not None and row.idle_s else None
    return _with(row, joules, resting, hardware.known, hardware.name, NO_METER)


def _with(row: EnergyRow, joules: float | None, resting: float | None, known: Known, source: str, doubt: str) -> EnergyRow:
    valid = not doubt and known != "none"
    return replace(row, joules=joules, idle_joules=resting, known=known, source=source, power_valid=valid, reason=doubt)


def power(row: EnergyRow, hardware: Hardware | None = None) -> Power:
    """A window's joules as watts. What the machine draws when it rests is taken off before the rest is divided by the busy
    time, where that is known."""
    known: Known = row.known  # type: ignore[assignment]
    if row.joules is None:
        return Power(NOTHING, NOTHING, NOTHING)
    mean = Figure(row.joules / row.seconds, known, row.source) if row.seconds else NOTHING
    declared_idle = hardware.idle_watts if hardware else None
    if row.idle_joules is not None and row.idle_s:
        idle = Figure(row.idle_joules / row.idle_s, known, row.source)
    elif hardware and declared_idle is not None:
        idle = Figure(declared_idle, hardware.known, hardware.name)
    else:
        idle = Figure(None, "none", "the machine has not rested yet")
    if row.reason == NO_METER and hardware:
        return Power(mean, Figure(hardware.watts, known, row.source), idle)
    if not row.busy_s:
        return Power(mean, Figure(None, "none", "the machine has not worked yet"), idle)
    if idle.value is None:
        return Power(mean, Figure(mean.value, known, row.source), idle)
    above = row.joules - idle.value * (row.seconds - row.busy_s)
    return Power(mean, Figure(max(0.0, above / row.busy_s), worst(known, idle.known), row.source), idle)


def together(rows: Sequence[EnergyRow]) -> EnergyRow | None:
    """Windows as one: those without a doubt, or else those with declared watts; None where there are neither."""
    used = [row for row in rows if row.power_valid] or [row for row in rows if row.reason == NO_METER]
    if not used:
        return None
    rested = [row for row in used if row.idle_joules is not None]
    known: Known = worst(*(row.known for row in used))  # type: ignore[arg-type]
    return replace(
        used[-1],
        seconds=sum(row.seconds for row in used),
        busy_s=sum(row.busy_s for row in used),
        joules=sum(row.joules or 0.0 for row in used),
        idle_s=sum(row.idle_s for row in rested),
        idle_joules=sum(row.idle_joules or 0.0 for row in rested) if rested else None,
        known=known,
    )


class Sampler:
    """Reads the meters once a second, gives away a row twice a minute, and knows the power of the last ten minutes.

    `busy_s` tells the engines' seconds in all steps so far. `tick` is what the thread does; all else may be read anywhere.
    """

    def __init__(
        self,
        meters: Sequence[Meter],
        hardware: Hardware | None,
        busy_s: Callable[[], float],
        add: Callable[[EnergyRow], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._meters, self._hardware, self._busy_s, self._add, self._clock = meters, hardware, busy_s, add, clock
        self.source = " and ".join(meter.source for meter in meters)
        self._began = time.time()
        self._window = [self._read()]
        self._rows: deque[EnergyRow] = deque(maxlen=REMEMBER)
        self._before = 0.0  # joules of the windows that are over
        self.joules: float | None = None  # in all since the start; None until something is known
        self.busy_s = 0.0  # likewise
        self.power = self._power(window(self._window * 2, 0.0, self.source, hardware))
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to read."""
        self._thread = threading.Thread(target=self._run, name="energy", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, and give away what is left as a last, short window."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(10)
        self.tick()
        self._cut()

    def tick(self) -> None:
        """Read, and close the window if it is long enough."""
        now = self._read()
        self._window.append(now)
        so_far = window(self._window, 0.0, self.source, self._hardware)
        self.power = self._power(so_far)
        self.joules = None if so_far.joules is None else self._before + so_far.joules
        self.busy_s = now.busy_s
        if now.at - self._window[0].at >= WINDOW_S:
            self._cut()

    def _power(self, so_far: EnergyRow) -> Power:
        lately = together([*self._rows, so_far])
        return power(lately, self._hardware) if lately else Power(NOTHING, NOTHING, NOTHING)

    def _cut(self) -> None:
        row = window(self._window, self._began, self.source, self._hardware)
        self._before += row.joules or 0.0
        self._rows.append(row)
        self._window = [self._window[-1]]
        self._began += row.seconds
        try:
            self._add(row)
        except Exception as error:  # a book that can't keep up must not stop the meter
            log.warning("an energy window is lost: %s", error)

    def _read(self) -> Tick:
        joules: float | None = 0.0
        watts: float | None = 0.0
        broken = False
        for meter in self._meters:
            try:
                reading = meter.read()
            except (OSError, ValueError) as error:
                log.debug("%s: %s", meter.source, error)
                joules = watts = None
                break
            joules = None if joules is None or reading.joules is None else joules + reading.joules
            watts = None if watts is None or reading.watts is None else watts + reading.watts
            broken = broken or reading.broken
        return Tick(self._clock(), joules, watts, self._busy_s(), broken)

    def _run(self) -> None:
        while not self._stop.wait(TICK_S):
            try:
                self.tick()
            except Exception:
                log.exception("the power could not be read")
