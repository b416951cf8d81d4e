"""The books of a stretch of time: whatever was done in it, its parts add up to what the machine cost."""

from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.ledger import AttemptRow, Ledger, RequestRow
from baseload.ledger.energy import Sampler
from baseload.ledger.live import Books, Energy, Totals, books, reckon
from baseload.ledger.machine import Machine, never_falling
from baseload.ledger.machine_cost import Figure, Hardware, profile
from baseload.ledger.rows import EnergyRow
from baseload.wire.errors import BadRequest

NOTHING = Energy(None, "none", 0.0, 0.0, None, None)
BOX = Hardware("box", date(2026, 1, 1), "invoice", "declared", 8760.0, 0.0, 1.0, 0.0, 0.5, 1.0, 0.0, 1000.0)  # $1.50 an hour


def of(hour: float | None, window_s: float = 3600.0, **sums: Any) -> Books:
    return reckon(Totals(**sums), Figure(hour, "declared"), NOTHING, 0.0, window_s)


@given(
    hour=st.floats(0.01, 1000),
    window_s=st.floats(1, 1e7),
    device=st.floats(0, 1e7),
    split=st.floats(0, 1),
    inputs=st.floats(0, 1),
    lost=st.floats(0, 1e6),
    tokens=st.tuples(*[st.integers(0, 10**12)] * 3),
)
def test_the_parts_add_up_to_the_machines_cost(
    hour: float, window_s: float, device: float, split: float, inputs: float, lost: float, tokens: tuple[int, int, int]
):
    counts = dict(zip(("input_tokens", "cached_tokens", "output_tokens"), tokens, strict=True))
    seconds = {"device_s": device, "split_s": device * split, "input_s": device * split * inputs, "steps_s": device + lost}
    found = of(hour, window_s, **counts, **seconds)
    parts = [found.input, found.cached, found.output, found.other]
    assert found.idle_usd is not None and found.machine_usd is not None
    usd = [part.usd or 0.0 for part in parts]
    assert sum(usd) + found.idle_usd == pytest.approx(found.machine_usd, rel=1e-9, abs=1e-9)
    assert min(*usd, found.idle_usd) >= -1e-9
    assert found.busy_s + found.idle_s == pytest.approx(window_s)
    assert 0 <= found.utilisation <= 1
    for part in parts:
        if part.usage_usd is not None and part.allocation_usd is not None:
            assert part.usage_usd <= part.allocation_usd * (1 + 1e-9)
    if found.total.allocation_usd is not None:
        assert found.total.allocation_usd * sum(tokens) / 1e6 == pytest.approx(found.machine_usd)


def test_what_the_cache_held_costs_nothing_and_what_went_in_and_out_have_their_own_prices():
    found = of(3.6, input_tokens=10**6, cached_tokens=9 * 10**6, output_tokens=10**5, device_s=900, split_s=900, input_s=300)
    assert (found.input.usage_usd, found.cached.usage_usd) == (pytest.approx(0.3), 0.0)
    assert found.output.usage_usd == pytest.approx(0.6 / 0.1)
    assert (found.utilisation, found.input.allocation_usd) == (0.25, pytest.approx(1.2))


def test_an_hour_without_a_price_prices_nothing():
    found = of(None, input_tokens=5, output_tokens=5, device_s=1.0, split_s=1.0, input_s=0.5)
    assert {found.machine_usd, found.idle_usd, found.input.usd, found.output.usage_usd, found.total.allocation_usd} == {None}
    assert found.utilisation == pytest.approx(1 / 3600)


def test_models_that_share_the_machine_at_once_pay_for_the_clock_once():
    found = of(1.0, device_s=7200.0, split_s=7200.0, input_s=7200.0, input_tokens=10**6)
    assert (found.at_once, found.utilisation, found.idle_usd) == (2.0, 1.0, 0.0)
    assert found.input.usd == pytest.approx(1.0)


def attempt(n: int, **more: Any) -> AttemptRow:
    values: dict[str, Any] = {"duration_s": 1.0, "prompt_tokens": 100, "completion_tokens": 50, "cached_tokens": 40}
    return AttemptRow(f"a{n}", f"r{n}", 0, more.pop("backend", "local"), "m", 10.0, **(values | more))


def test_the_books_by_the_rows(url: str):
    ledger = Ledger.open(url)
    for n, ts in enumerate((5.0, 10.0, 20.0, 30.0, 1000.0)):
        ledger.add(RequestRow(f"r{n}", ts, "openai_chat", "auto", status="done", finished_ts=ts + 1))
    ledger.add(attempt(0, device_seconds=99.0))  # before the window
    ledger.add(attempt(1, device_seconds=30.0, input_seconds=10.0, accepted=True))
    ledger.add(attempt(2, device_seconds=20.0))  # of a time before splits were kept
    ledger.add(attempt(3, backend="far", retail_usd=0.25, accepted=True))
    ledger.add(AttemptRow("a3b", "r3", 1, "far", "m", 10.0, duration_s=1.0))
    ledger.add(attempt(4, device_seconds=99.0))  # after it
    ledger.add(EnergyRow("e1", 10.0, 30.0, 25.0, 6000.0, 5.0, 250.0, "measured", "RAPL", True))
    ledger.add(EnergyRow("e2", 40.0, 30.0, 30.0, 9999.0, 0.0, None, "measured", "RAPL", False, "5.0 s without a reading"))
    ledger.flush()
    found = books(ledger.engine, 10.0, 110.0, BOX)
    ledger.close()
    assert (found.input.tokens, found.cached.tokens, found.output.tokens) == (120, 80, 100)
    assert (found.requests, found.accepted, found.supplier_usd, found.unpriced) == (3, 2, 0.25, 1)
    assert (found.input.device_s, found.output.device_s, found.other.device_s) == (
        10.0,
        20.0,
        25.0,
    )  # 55 by the steps, 30 split
    assert (found.busy_s, found.idle_s) == (55.0, 45.0)
    assert (found.energy.mean_watts, found.energy.idle_watts, found.energy.valid_s) == (200.0, 50.0, 30.0)
    assert found.usd_per_hour.value == pytest.approx(1 + 0.2 * 0.5)  # by the meter, not the declared 1000 W
    assert found.usd_per_hour.known == "declared"


def machine(watts: float | None = 1000.0, box: Hardware | None = BOX) -> Machine:
    profile_of = None if box is None else Hardware(**{**vars(box), "watts": watts})
    return Machine(profile_of, Sampler([], profile_of, lambda: 0.0, lambda row: None))


def test_a_call_takes_its_share_of_energy_and_money():
    row = machine().priced(attempt(1, device_seconds=36.0))
    assert (row.energy_joules, row.energy_known) == (36_000.0, "declared")
    assert (row.internal_usd, row.internal_known) == (pytest.approx(0.015), "declared")


def test_what_is_not_known_is_never_zero():
    for unknown in (machine(None), machine(box=None)):
        row = unknown.priced(attempt(1, device_seconds=36.0))
        assert (row.energy_joules, row.internal_usd, row.energy_known, row.internal_known) == (None,) * 4
    row = machine().priced(attempt(1, backend="far"))  # no device time: somebody else's machine
    assert (row.energy_joules, row.internal_usd) == (None, None)


def test_the_seconds_of_engines_that_come_and_go_never_fall():
    shown: dict[int, float] = {1: 5.0}
    busy = never_falling(lambda: shown.items())
    assert busy() == 5.0
    shown[2] = 1.0
    assert busy() == 6.0
    del shown[1]
    shown[2] = 3.0
    assert busy() == 8.0
    shown[1] = 0.5  # loaded again
    assert busy() == 8.5


def test_a_profile_by_name_or_by_file_or_the_names_that_there_are(tmp_path: Any):
    named = profile("example-workstation")
    assert named and named.capex_usd == 3000 and profile("") is None
    with pytest.raises(BadRequest, match="one of cpu-vm-2-cores, example-workstation, h100-server"):
        profile("my-box")
    (tmp_path / "box.toml").write_text("watts = 'many'")
    with pytest.raises(BadRequest, match="missing"):
        profile(str(tmp_path / "box.toml"))
