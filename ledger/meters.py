"""The instruments that tell a machine's energy: NVML's counters of NVIDIA's GPUs, and RAPL's of Intel's and AMD's processors.

Each gives joules since it was opened, whatever its own counter began at and however often that wrapped around. A machine may
have both, one or neither; most virtual ones have neither. What they don't see (disks, fans, what the power supply loses) is the
profile's `unmetered_watts`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

log = logging.getLogger("baseload.ledger")

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Reading:
    """`joules` since the meter was opened, None where it has no counter; `watts` of this moment, None where it can't tell;
    `broken`: the counter began anew since the last reading, so that nobody knows what was in between."""

    joules: float | None
    watts: float | None
    broken: bool = False


class Meter(Protocol):
    """One instrument. `source` names it for people."""

    @property
    def source(self) -> str: ...
    def read(self) -> Reading:
        """Raises OSError where the instrument is gone."""
        ...


class Rapl:
    """The packages' and their memories' counters in Linux' powercap tree, in microjoules that wrap around at a maximum.

    Cores and graphics are in their package's count and are left out; so is `psys`, which counts the packages again, and the
    `intel-rapl-mmio` tree, a second way to the same counters.
    """

    def __init__(self, zones: Sequence[Path]) -> None:
        self._zones = [(zone / "energy_uj", int((zone / "max_energy_range_uj").read_text())) for zone in zones]
        self._last = [_integer(path) for path, _ in self._zones]
        self._total_uj = 0
        self.source = f"RAPL of {', '.join((zone / 'name').read_text().strip() for zone in zones)}"

    def read(self) -> Reading:
        """See Meter. A counter is read more than once in its round: 262 kJ are 20 minutes at 200 W."""
        now = [_integer(path) for path, _ in self._zones]
        for old, new, (_, most) in zip(self._last, now, self._zones, strict=True):
            self._total_uj += new - old if new >= old else new - old + most
        self._last = now
        return Reading(self._total_uj / 1e6, None)


class Nvml:
    """All GPUs that the driver shows. Their counters (millijoules since the driver was loaded; Volta and later) move about
    every 100 ms; power readings (milliwatts) are beside them, and alone on what is older."""

    def __init__(self, nvml: Any) -> None:
        """`nvml` is the module pynvml, initialised. Raises its errors."""
        self._nvml = nvml
        self._devices = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        self._total_mj = 0
        self._last: list[int] | None
        try:
            self._last = self._counters()
        except nvml.NVMLError:
            self._last = None
        self.source = f"NVML of {len(self._devices)} GPU" + ("s" if len(self._devices) != 1 else "")

    def read(self) -> Reading:
        """See Meter."""
        try:
            watts = sum(self._nvml.nvmlDeviceGetPowerUsage(device) for device in self._devices) / 1000
            if self._last is None:
                return Reading(None, watts)
            now = self._counters()
        except self._nvml.NVMLError as error:
            raise OSError(f"NVML: {error}") from error
        broken = any(new < old for old, new in zip(self._last, now, strict=True))  # the driver was loaded anew
        self._total_mj += 0 if broken else sum(now) - sum(self._last)
        self._last = now
        return Reading(self._total_mj / 1000, watts, broken)

    def _counters(self) -> list[int]:
        return [self._nvml.nvmlDeviceGetTotalEnergyConsumption(device) for device in self._devices]


def find(powercap: Path = POWERCAP, nvml: Any = None) -> list[Meter]:
    """The meters of this machine that can be read; none on most virtual machines. Never raises."""
    meters: list[Meter] = []
    if (gpus := _gpus(nvml)) is not None:
        meters.append(gpus)
    if zones := _zones(powercap):
        meters.append(Rapl(zones))
    return meters


def _zones(powercap: Path) -> list[Path]:
    """The zones to add up, where every one of them may be read: since 2020 only root may, and half a sum is no sum."""
    found: list[Path] = []
    for zone in sorted(powercap.glob("intel-rapl:*")):
        try:
            name = (zone / "name").read_text().strip()
            if name.startswith("package") or name == "dram":
                _integer(zone / "energy_uj")
                int((zone / "max_energy_range_uj").read_text())
                found.append(zone)
        except (OSError, ValueError) as error:
            log.debug("RAPL is not read: %s", error)
            return []
    return found


def _gpus(nvml: Any) -> Nvml | None:
    if nvml is None:
        try:
            import pynvml as nvml  # late: it looks for the driver's library
        except ImportError:
            return None
    try:
        nvml.nvmlInit()
        return Nvml(nvml) if nvml.nvmlDeviceGetCount() else None
    except nvml.NVMLError as error:
        log.debug("NVML is not read: %s", error)
        return None


def _integer(path: Path) -> int:
    return int(path.read_text())
