"""The machine's price: what must hold of any numbers. (The worked example of docs/costs.md: test_ledger_report.py.)"""

from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.ledger.machine_cost import (
    Figure,
    Hardware,
    break_even_utilisation,
    capital_recovery,
    load,
    million_tokens,
    request_usd,
    usd_per_hour,
)

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "configs" / "hardware" / "example-workstation.toml"


def hardware(**changes: object) -> Hardware:
    numbers: dict[str, object] = {"capex_usd": 1e4, "residual_usd": 0.0, "years": 5.0, "interest": 0.0, "usd_per_kwh": 0.2}
    numbers |= {"pue": 1.0, "ops_usd_per_year": 0.0, "watts": 100.0} | changes
    return Hardware("box", date(2026, 1, 1), "invoice", "declared", **numbers)  # type: ignore[arg-type]


@given(st.floats(0.001, 0.5), st.floats(0.5, 20))
def test_what_is_paid_back_is_worth_the_loan(interest: float, years: float):
    """The present value of an annuity of CRF over the years is the loan: sum of CRF / (1+r)^t, in closed form."""
    worth = capital_recovery(interest, years) * (1 - (1 + interest) ** -years) / interest
    assert worth == pytest.approx(1)
    assert capital_recovery(interest, years) >= capital_recovery(0, years) * (1 - 1e-9)


@given(st.floats(0, 100), st.floats(1, 1e6), st.floats(0, 1), st.integers(1, 10**12))
def test_usage_and_idle_make_allocation(hour: float, window_s: float, busy: float, tokens: int):
    price = million_tokens(hour, window_s, window_s * busy, tokens)
    assert price.usage_usd is not None and price.allocation_usd is not None and price.idle_usd is not None
    assert 0 <= price.usage_usd <= price.allocation_usd
    assert price.usage_usd + price.idle_usd == pytest.approx(price.allocation_usd)
    assert price.allocation_usd * tokens / 1e6 == pytest.approx(hour * window_s / 3600)


@given(st.lists(st.floats(0, 1e4), min_size=1), st.floats(0, 100))
def test_the_requests_add_up_to_the_time_at_the_hours_price(seconds: list[float], hour: float):
    assert sum(request_usd(s, hour) for s in seconds) == pytest.approx(sum(seconds) / 3600 * hour)


def test_a_figure_is_as_well_known_as_its_worst_term():
    assert usd_per_hour(hardware(), Figure(80, "measured", "RAPL")).known == "declared"
    assert usd_per_hour(hardware(), Figure(80, "assumed")).known == "assumed"
    unknown = usd_per_hour(hardware(watts=None))
    assert (unknown.value, unknown.known) == (None, "none")  # never cheaper for not knowing
    assert usd_per_hour(hardware(watts=None), Figure(100, "measured")).value == usd_per_hour(hardware()).value


def test_without_tokens_or_a_price_there_is_no_figure():
    assert million_tokens(1, 3600, 0, 0).usage_usd is None
    assert break_even_utilisation(1, 0) is None
    with pytest.raises(ValueError, match="do not fit"):
        million_tokens(1, 3600, 7200, 1)


@pytest.mark.parametrize(
    ("line", "why"),
    [("watts = -1", "watts is below 0"), ("pue = 0.5", "pue"), ("years = 0", "years"), ("wats = 5", "wats is unknown")],
)
def test_a_wrong_profile_is_refused_by_name(tmp_path: Path, line: str, why: str):
    name = line.split()[0]
    kept = [own for own in EXAMPLE.read_text().splitlines() if not own.startswith(name)]
    (tmp_path / "h.toml").write_text("\n".join([*kept, line]))
    with pytest.raises(ValueError, match=why):
        load(tmp_path / "h.toml")


def test_every_shipped_profile_loads_and_says_how_it_is_known():
    for path in EXAMPLE.parent.glob("*.toml"):
        assert load(path).source
