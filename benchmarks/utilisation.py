"""What a machine's tokens cost at each utilisation, and where that line crosses a supplier's list price. Pure; US dollars.

A request's cost is the time it takes of the machine: t = input / read rate + output / write rate (additive, so input's and
output's part sum to the whole), times C_h / 3600, over the utilisation u: at u = 0.1 each hour of work bears ten. The machine's
power is taken to be that under load at every u, so the line is an upper bound where an idle machine draws less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ..ledger.machine_cost import break_even_utilisation
from ..ledger.retail import Tokens, quote

UTILISATIONS = tuple(n / 10 for n in range(1, 11))


@dataclass(frozen=True, slots=True)
class Mix:
    """The request that is priced: tokens in and out."""

    input_tokens: int
    output_tokens: int

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Cost:
    """Dollars of a million of the mix's tokens, by utilisation; and of input and output tokens apart, at full utilisation."""

    usd_per_hour: float
    requests_per_hour: float  # at full utilisation
    usd_per_mtok: dict[str, float]  # utilisation, "0.1" to "1.0" -> of the mix
    input_usd_per_mtok: float
    output_usd_per_mtok: float


@dataclass(frozen=True, slots=True)
class Retail:
    """The same tokens at a supplier's list price."""

    name: str
    usd_per_mtok: float
    break_even: float  # utilisation from which on the machine is cheaper; above 1: never
    source: str
    looked_up: str  # date


def cost(mix: Mix, usd_per_hour: float, read_tokens_per_s: float, write_tokens_per_s: float) -> Cost:
    """See above."""
    seconds = mix.input_tokens / read_tokens_per_s + mix.output_tokens / write_tokens_per_s
    each = usd_per_hour / 3600
    full = each * seconds / mix.tokens * 1e6
    return Cost(
        usd_per_hour,
        3600 / seconds,
        {f"{u:.1f}": full / u for u in UTILISATIONS},
        each / read_tokens_per_s * 1e6,
        each / write_tokens_per_s * 1e6,
    )


def beside(mix: Mix, own: Cost, names: Sequence[str]) -> tuple[list[Retail], list[str]]:
    """Each `supplier/model` with a list price, uncached; and those that have none, which are never taken as free."""
    priced: list[Retail] = []
    unpriced: list[str] = []
    for name in names:
        supplier, _, model = name.partition("/")
        found = quote(supplier, model, Tokens(mix.input_tokens, mix.output_tokens))
        if found is None or found.usd <= 0:
            unpriced.append(name)
            continue
        usd = float(found.usd)
        crossing = break_even_utilisation(own.usd_per_hour, usd * own.requests_per_hour)
        assert crossing is not None
        today = datetime.now(UTC).date().isoformat()
        priced.append(Retail(name, usd / mix.tokens * 1e6, crossing, found.source, today))
    return priced, unpriced
