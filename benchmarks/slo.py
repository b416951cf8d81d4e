"""Service levels by name, and how much of a load kept them.

MLPerf Inference's limits for its server scenario and, where there is one, its interactive one (inference_rules.adoc, "Server
latency constraints", and loadgen's mlperf.conf): time to first token, and time per output token after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from .load_client import Result
from .stats import Slo, parse_slo

Z95 = 1.959964  # of the normal distribution, both sides


@dataclass(frozen=True, slots=True)
class Tier:
    """A service level and what it is called."""

    name: str
    slo: Slo


def _two(server: tuple[float, float], interactive: tuple[float, float]) -> tuple[Tier, ...]:
    return Tier("server", Slo(*server)), Tier("interactive", Slo(*interactive))


MLPERF: dict[str, tuple[Tier, ...]] = {
    "llama3.1-8b": _two((2.0, 0.1), (0.5, 0.03)),
    "llama2-70b": _two((2.0, 0.2), (0.45, 0.04)),
    "llama3.1-405b": _two((6.0, 0.175), (4.5, 0.08)),
    "deepseek-r1": _two((2.0, 0.08), (1.5, 0.015)),
    "gpt-oss-120b": _two((3.0, 0.08), (2.0, 0.02)),  # loadgen's mlperf.conf has 15 ms for the interactive one
}


def parse_tiers(text: str) -> tuple[Tier, ...]:
    """`mlperf:llama3.1-8b`, or limits of one's own as `ttft=0.5,tpot=0.05,e2e=10`. Raises ValueError."""
    family, colon, name = text.partition(":")
    if colon and family == "mlperf":
        if name not in MLPERF:
            raise ValueError(f"{name!r} has no limits here; known are {', '.join(MLPERF)}")
        return MLPERF[name]
    return (Tier("own", parse_slo(text)),)


@dataclass(frozen=True, slots=True)
class Goodput:
    """Of a load, what kept a level: a request that failed is bad, one whose client went away is on neither side."""

    name: str
    slo: Slo
    good: int
    asked: int
    good_per_s: float
    good_output_tokens_per_s: float
    share: float
    share_low: float  # 95%, Wilson
    share_high: float


def goodput(tier: Tier, results: Sequence[Result], span_s: float) -> Goodput:
    """`span_s`: what the rates are over."""
    good = [r for r in results if r.error is None and tier.slo.met(r.ttft, r.tpot, r.e2e)]
    low, high = wilson(len(good), len(results))
    span = max(span_s, 1e-9)
    tokens = sum(r.tokens for r in good)
    share = len(good) / max(1, len(results))
    return Goodput(tier.name, tier.slo, len(good), len(results), len(good) / span, tokens / span, share, low, high)


def wilson(good: int, n: int, z: float = Z95) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927): sound for few and for extreme values too. (0, 1) of none."""
    if n == 0:
        return 0.0, 1.0
    p = good / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
