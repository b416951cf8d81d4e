"""Joules: what the counters counted is in the windows to the last one, wrap-arounds and all, and doubts are said."""

from dataclasses import fields
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.ledger import Ledger, energy, meters
from baseload.ledger.energy import Sampler, Tick, power, window
from baseload.ledger.machine_cost import Hardware
from baseload.ledger.rows import EnergyRow
from baseload.ledger.schema import energy as table

RANGE_UJ = 262_143_328_850  # what a server's package says


def zone(tree: Path, name: str, kind: str, uj: int = 0) -> Path:
    place = tree / name
    place.mkdir(parents=True)
    (place / "name").write_text(f"{kind}\n")
    (place / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    (place / "energy_uj").write_text(f"{uj}\n")
    return place


class FakeNvml:
    """The driver's library, as far as it is called. Millijoules and milliwatts of each GPU."""

    class NVMLError(Exception):
        pass

    def __init__(self, mj: list[int] | None, mw: list[int]) -> None:
        self.mj, self.mw = mj, mw

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return len(self.mw)

    def nvmlDeviceGetHandleByIndex(self, i: int) -> int:
        return i

    def nvmlDeviceGetTotalEnergyConsumption(self, i: int) -> int:
        if self.mj is None:
            raise self.NVMLError("Not Supported")
        return self.mj[i]

    def nvmlDeviceGetPowerUsage(self, i: int) -> int:
        return self.mw[i]


class NoDriver(FakeNvml):
    def nvmlInit(self) -> None:
        raise self.NVMLError("NVML Shared Library Not Found")


def hardware(**watts: float) -> Hardware:
    return Hardware("box", date(2026, 1, 1), "invoice", "declared", 1e4, 0.0, 5.0, 0.0, 0.2, 1.0, 0.0, **watts)


def sampler(found: list[meters.Meter], clock: list[float], busy: list[float], box: Hardware | None = None) -> Any:
    rows: list[EnergyRow] = []
    return Sampler(found, box, lambda: busy[0], rows.append, lambda: clock[0]), rows


@settings(max_examples=60)
@given(
    steps=st.lists(
        st.tuples(st.floats(0.2, 5.0), st.integers(0, RANGE_UJ - 1), st.integers(0, 10**6)), min_size=1, max_size=150
    ),
    begin=st.integers(0, RANGE_UJ - 1),
)
def test_the_windows_add_up_to_the_counters_whole(tmp_path_factory: Any, steps: list[tuple[float, int, int]], begin: int):
    """However the processor's counter wraps around and however irregularly it is read, and a GPU's beside it."""
    tree = tmp_path_factory.mktemp("powercap")
    place, gpu = zone(tree, "intel-rapl:0", "package-0", begin), FakeNvml([5], [0])
    clock, busy = [0.0], [0.0]
    sampled, rows = sampler(meters.find(tree, gpu), clock, busy)
    raw = begin
    for seconds, uj, mj in steps:
        raw = (raw + uj) % RANGE_UJ
        (place / "energy_uj").write_text(str(raw))
        assert gpu.mj is not None
        gpu.mj[0] += mj
        clock[0] += seconds
        sampled.tick()
    sampled.close()
    whole = sum(uj for _, uj, _ in steps) / 1e6 + sum(mj for *_, mj in steps) / 1e3
    assert sum(row.joules for row in rows) == pytest.approx(whole, rel=1e-9, abs=1e-6)
    assert sampled.joules == pytest.approx(whole, rel=1e-9, abs=1e-6)
    assert sum(row.seconds for row in rows) == pytest.approx(clock[0])


def test_packages_and_memory_are_added_up_and_nothing_twice(tmp_path: Path):
    for name, kind in (("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core"), ("intel-rapl:0:1", "dram")):
        zone(tmp_path, name, kind)
    zone(tmp_path, "intel-rapl:1", "package-1")
    zone(tmp_path, "intel-rapl:2", "psys")
    zone(tmp_path, "intel-rapl-mmio:0", "package-0")
    (found,) = meters.find(tmp_path, NoDriver(None, []))
    for path in tmp_path.glob("*/energy_uj"):
        path.write_text("7000000")
    assert (found.read().joules, found.source) == (21.0, "RAPL of package-0, dram, package-1")


def test_a_zone_that_may_not_be_read_leaves_none(tmp_path: Path):
    zone(tmp_path, "intel-rapl:0", "package-0")
    (zone(tmp_path, "intel-rapl:1", "package-1") / "energy_uj").write_text("")
    assert meters.find(tmp_path, NoDriver(None, [])) == []
    assert meters.find(tmp_path / "nothing", NoDriver(None, [])) == []


def ticks(n: int = 31, watts: float = 100.0, **changes: Any) -> list[Tick]:
    return [Tick(float(i), 100.0 * i, watts, 0.0, **changes) for i in range(n)]


@pytest.mark.parametrize(
    ("read", "why"),
    [
        (ticks(), ""),
        (ticks(watts=104.0), ""),
        (ticks(watts=106.0), "counter 3000 J, integral of power 3180 J"),
        (ticks(watts=94.0), "counter 3000 J, integral of power 2820 J"),
        (ticks()[:10] + ticks()[14:], "5.0 s without a reading"),
        (ticks()[:10] + ticks()[12:], ""),
        (ticks(n=5), "too short"),
        (ticks(broken=True), "a counter began anew"),
    ],
)
def test_a_window_that_is_not_to_be_relied_on_says_why(read: list[Tick], why: str):
    row = window(read, 0.0, "meter", None)
    assert (row.power_valid, row.reason, row.known) == (not why, why, "measured")


def test_a_gpu_without_a_counter_is_read_by_its_power():
    clock, gpu = [0.0], FakeNvml(None, [50_000, 70_000])
    sampled, rows = sampler(meters.find(Path("/nonexistent"), gpu), clock, [0.0])
    for _ in range(30):
        clock[0] += 1
        sampled.tick()
    assert (rows[0].joules, rows[0].known, rows[0].power_valid) == (3600.0, "measured", True)


def test_a_driver_that_was_loaded_anew_is_no_negative_energy():
    clock, gpu = [0.0], FakeNvml([10**9], [100_000])
    sampled, rows = sampler(meters.find(Path("/nonexistent"), gpu), clock, [0.0])
    for i in range(30):
        clock[0] += 1
        gpu.mj = [100_000 * i]
        sampled.tick()
    assert rows[0].joules >= 0 and (rows[0].power_valid, rows[0].reason) == (False, "a counter began anew")


def test_what_a_resting_machine_draws_is_told_apart():
    """10 s of work at 300 W within 30 s at 100 W: work's own watts, and the idle ones beside it."""
    clock, busy, gpu = [0.0], [0.0], FakeNvml([0], [100_000])
    sampled, rows = sampler(meters.find(Path("/nonexistent"), gpu), clock, busy)
    for i in range(30):
        works = 10 <= i < 20
        clock[0] += 1
        busy[0] += works
        assert gpu.mj is not None
        gpu.mj[0] += 300_000 if works else 100_000
        sampled.tick()
    found = power(rows[0])
    assert (rows[0].joules, rows[0].busy_s) == (5000.0, 10.0)
    assert (found.idle.value, found.busy.value, found.mean.value) == (100.0, 300.0, pytest.approx(5000 / 30))
    assert {found.idle.known, found.busy.known} == {"measured"}


def test_the_running_figures_leave_out_what_is_in_doubt():
    """A minute at 100 W, then one in which the counter and the power readings disagree: the second is not believed."""
    clock, gpu = [0.0], FakeNvml([0], [100_000])
    sampled, rows = sampler(meters.find(Path("/nonexistent"), gpu), clock, [0.0])
    assert sampled.power.mean.value is None
    for i in range(120):
        clock[0] += 1
        assert gpu.mj is not None
        gpu.mj[0] += 100_000 if i < 60 else 900_000
        sampled.tick()
    assert [row.power_valid for row in rows] == [True, True, False, False]
    assert (sampled.power.mean.value, sampled.power.idle.value) == (pytest.approx(100), pytest.approx(100))
    assert sampled.joules == pytest.approx(60 * 100 + 60 * 900)  # what was counted was counted


def test_what_no_instrument_sees_is_added_and_is_as_well_known_as_the_worse():
    row = window(ticks(), 0.0, "RAPL", hardware(unmetered_watts=40.0))
    assert (row.joules, row.known) == (pytest.approx(30 * 140), "declared")
    assert "40 W declared" in row.source


def test_without_a_meter_declared_watts_stand_in_and_without_those_nothing_does():
    busy = [Tick(float(i), 0.0, 0.0, min(i, 10.0)) for i in range(31)]
    row = window(busy, 0.0, "", hardware(watts=200.0, idle_watts=50.0))
    assert (row.joules, row.known, row.power_valid, row.reason) == (10 * 200 + 20 * 50, "declared", False, "no meter")
    assert window(busy, 0.0, "", hardware(watts=200.0)).joules == 30 * 200  # at rest as under load: never cheaper
    for box in (None, hardware()):
        row = window(busy, 0.0, "", box)
        assert (row.joules, row.known, row.power_valid) == (None, "none", False)
        assert power(row).busy.value is None


def test_a_meter_that_goes_away_is_no_energy(tmp_path: Path):
    place = zone(tmp_path, "intel-rapl:0", "package-0")
    clock = [0.0]
    sampled, rows = sampler(meters.find(tmp_path, NoDriver(None, [])), clock, [0.0])
    for i in range(30):
        if i == 15:
            (place / "energy_uj").unlink()
        clock[0] += 1
        sampled.tick()
    assert (rows[0].joules, rows[0].known, rows[0].reason) == (None, "none", "a meter did not answer")


def test_windows_are_kept(url: str):
    ledger = Ledger.open(url)
    row = window(ticks(), 5.0, "RAPL", None)
    ledger.add(row)
    ledger.flush()
    with ledger.engine.connect() as connection:
        kept = connection.execute(table.select()).mappings().one()
    ledger.close()
    assert {f.name: kept[f.name] for f in fields(EnergyRow)} == {f.name: getattr(row, f.name) for f in fields(EnergyRow)}


def test_this_machines_own_meters_never_raise():
    for meter in meters.find():
        assert (meter.read().joules or 0) >= 0
    started = Sampler(meters.find(), None, lambda: 0.0, lambda row: None)
    started.start()
    started.close()
    assert energy.NOTHING.value is None
