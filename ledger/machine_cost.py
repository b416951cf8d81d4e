"""What the machine costs by the hour, and what that makes of tokens and requests. Pure formulas; money in US dollars.

Two prices, never mixed. *Usage* charges for the time the machine was busy; *allocation* for all its time, idle included, and is
the one to set beside an API's price, since an API's price bears its own idle machines.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path
from typing import Literal

from ..wire.errors import BadRequest

HOURS_A_YEAR = 8760
PROFILES = Path(__file__).parents[1] / "configs" / "hardware"

Known = Literal["measured", "declared", "assumed", "none"]
KNOWN: tuple[Known, ...] = ("measured", "declared", "assumed", "none")  # from the best to the worst
OPTIONAL = ("watts", "idle_watts", "unmetered_watts")


@dataclass(frozen=True)
class Figure:
    """A number and how it is known: read from an instrument, told by the operator, supposed by us, or not at all."""

    value: float | None
    known: Known
    source: str = ""


@dataclass(frozen=True)
class Hardware:
    """A machine as its owner's invoice and meter tell of it. `known`: whether those numbers are declared or only assumed.

    `watts` is the draw under load where no instrument tells; None: unknown, and the cost of power then is too. `idle_watts` is
    that of the machine at rest; None: as under load. `unmetered_watts` is what stays unseen by instruments that see a part (the
    GPUs, the processors); None: nothing is added to what they tell.
    """

    name: str
    date: date
    source: str
    known: Known
    capex_usd: float
    residual_usd: float
    years: float
    interest: float  # a year, 0.05 for 5%
    usd_per_kwh: float
    pue: float  # power usage effectiveness: what the building draws for each watt of the machine
    ops_usd_per_year: float  # people, space, network, licences
    watts: float | None = None
    idle_watts: float | None = None
    unmetered_watts: float | None = None


def worst(*known: Known) -> Known:
    """How well a figure is known that is made of several."""
    return KNOWN[max(map(KNOWN.index, known))]


def profile(name: str) -> Hardware | None:
    """The profile that a setting names: a file, or one of configs/hardware; None for an empty name. Raises BadRequest."""
    if not name:
        return None
    path = Path(name).expanduser() if name.endswith(".toml") else PROFILES / f"{name}.toml"
    if ("/" in name and not name.endswith(".toml")) or not path.is_file():
        shipped = ", ".join(sorted(p.stem for p in PROFILES.glob("*.toml")))
        raise BadRequest(
            f"There is no hardware profile {name!r}; give a .toml file or one of {shipped}.", param="hardware.profile"
        )
    try:
        return load(path)
    except (OSError, ValueError, TypeError) as error:
        raise BadRequest(f"The hardware profile cannot be used: {error}", param="hardware.profile") from error


def load(path: Path) -> Hardware:
    """A profile from TOML. Raises ValueError naming the key that is missing, unknown or out of range."""
    raw = tomllib.loads(path.read_text())
    names = {f.name for f in fields(Hardware)}
    if wrong := sorted(set(raw) - names) or sorted(names - set(raw) - set(OPTIONAL)):
        raise ValueError(f"{path}: {', '.join(wrong)} is {'unknown' if set(raw) - names else 'missing'}")
    if raw["known"] not in ("declared", "assumed"):
        raise ValueError(f"{path}: known is declared or assumed")
    numbers = ("capex_usd", "residual_usd", "interest", "usd_per_kwh", "ops_usd_per_year", *OPTIONAL)
    if wrong := [name for name in numbers if raw.get(name, 0) < 0]:
        raise ValueError(f"{path}: {', '.join(wrong)} is below 0")
    if raw["years"] <= 0 or raw["pue"] < 1:
        raise ValueError(f"{path}: years must be above 0 and pue at least 1")
    return Hardware(**raw)


def capital_recovery(interest: float, years: float) -> float:
    """The share of a loan that is paid back each year: r(1+r)^n / ((1+r)^n - 1), and 1/n without interest.

    The capital recovery factor of engineering economics (e.g. ASTM E833).
    """
    if interest == 0:
        return 1 / years
    grown = (1 + interest) ** years
    return interest * grown / (grown - 1)


def capital_usd_per_hour(hardware: Hardware) -> float:
    """C_cap = (capex - residual) * CRF / 8760."""
    return (hardware.capex_usd - hardware.residual_usd) * capital_recovery(hardware.interest, hardware.years) / HOURS_A_YEAR


def power_usd_per_hour(hardware: Hardware, watts: float) -> float:
    """C_pwr = kW * PUE * $/kWh."""
    return watts / 1000 * hardware.pue * hardware.usd_per_kwh


def usd_per_hour(hardware: Hardware, watts: Figure | None = None) -> Figure:
    """C_h = C_cap + C_pwr + C_ops, with `watts` measured, or the profile's own; unknown power makes it unknown, never cheap.

    It is as well known as the worst of its terms.
    """
    if watts is None or watts.value is None:
        watts = Figure(hardware.watts, hardware.known if hardware.watts is not None else "none")
    if watts.value is None:
        return Figure(None, "none", f"{hardware.name}: its power is unknown")
    power = power_usd_per_hour(hardware, watts.value)
    return Figure(
        capital_usd_per_hour(hardware) + power + hardware.ops_usd_per_year / HOURS_A_YEAR,
        worst(hardware.known, watts.known),
        f"{hardware.name} of {hardware.date}; power {watts.known}" + (f", {watts.source}" if watts.source else ""),
    )


@dataclass(frozen=True)
class Hour:
    """The terms of C_h in US dollars and their sum `total`; `capital_recovery` is the share of the price a year pays back."""

    capital_recovery: float
    capital_usd: float
    power_usd: float | None
    ops_usd: float
    total: Figure


def hour(hardware: Hardware, watts: float | None, total: Figure) -> Hour:
    """C_h in its terms, with these watts (None: the profile's)."""
    drawn = hardware.watts if watts is None else watts
    return Hour(
        capital_recovery(hardware.interest, hardware.years),
        capital_usd_per_hour(hardware),
        None if drawn is None else power_usd_per_hour(hardware, drawn),
        hardware.ops_usd_per_year / HOURS_A_YEAR,
        total,
    )


def request_usd(device_seconds: float, usd_per_hour: float) -> float:
    """The usage cost of a request: its share of the engine's time at C_h."""
    return device_seconds / 3600 * usd_per_hour


@dataclass(frozen=True)
class MillionTokens:
    """US dollars for a million tokens by either reading; None where no token was served. `utilisation` is busy / window."""

    usage_usd: float | None
    allocation_usd: float | None
    utilisation: float

    @property
    def idle_usd(self) -> float | None:
        """What allocation bears beyond usage."""
        if self.usage_usd is None or self.allocation_usd is None:
            return None
        return self.allocation_usd - self.usage_usd


def million_tokens(usd_per_hour: float, window_s: float, busy_s: float, tokens: int) -> MillionTokens:
    """allocation = C_h * window / Mtok ; usage = C_h * busy / Mtok (the two readings of OpenCost's and llm-d's proposals).

    Raises ValueError for a window that is shorter than the busy time in it.
    """
    if not 0 <= busy_s <= window_s * 1.01 or window_s <= 0:
        raise ValueError(f"{busy_s:g} s of work do not fit into {window_s:g} s")
    if not tokens:
        return MillionTokens(None, None, busy_s / window_s)
    each = usd_per_hour / 3600 / tokens * 1e6
    return MillionTokens(each * busy_s, each * window_s, busy_s / window_s)


def break_even_utilisation(usd_per_hour: float, retail_usd_per_busy_hour: float) -> float | None:
    """u* = C_h / (retail $ of the work of a full hour). Above 1: this machine can't be cheaper. None: the work has no price."""
    return usd_per_hour / retail_usd_per_busy_hour if retail_usd_per_busy_hour > 0 else None
