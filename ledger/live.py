"""The books of a stretch of time: what the machine's hours cost, and on what they went. The one reading that the report, the
metrics and the console share.

The parts add up: what went in, what came out, work without an answer and idle time make C_h x window. Two prices for a million
tokens, never mixed: *usage* charges busy time, *allocation* all time, and is the one to set beside an API's. Tokens that the
prefix cache held take no device time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, case, func, select

from .energy import NO_METER
from .machine_cost import Figure, Hardware, Known, usd_per_hour, worst
from .outcomes import ANSWERS
from .schema import attempts, energy, requests


@dataclass(frozen=True)
class Totals:
    """Sums over all attempts, failed ones too. Tokens are of local ones unless a name says otherwise, seconds of devices."""

    requests: int = 0
    accepted: int = 0
    input_tokens: int = 0  # computed
    cached_tokens: int = 0
    output_tokens: int = 0
    device_s: float = 0.0
    input_s: float = 0.0  # of `device_s`
    split_s: float = 0.0  # the part of `device_s` of which it is known what was input
    steps_s: float = 0.0  # of all steps, as the engines count them; 0 where nobody wrote that down
    supplier_tokens: int = 0
    supplier_usd: float = 0.0
    unpriced: int = 0  # suppliers' calls without a known price


@dataclass(frozen=True)
class Energy:
    """What the machine drew: `joules` over the `covered_s` of which that is known, `valid_s` of them without a doubt."""

    joules: float | None
    known: Known
    covered_s: float
    valid_s: float
    mean_watts: float | None
    idle_watts: float | None


@dataclass(frozen=True)
class Part:
    """One kind of tokens: `usd` = C_h x its device time; `usage_usd` and `allocation_usd` are for a million of them. None: C_h
    is unknown, or there are no tokens."""

    tokens: int
    device_s: float
    usd: float | None
    usage_usd: float | None
    allocation_usd: float | None


@dataclass(frozen=True)
class Books:
    """`machine_usd` = C_h x window = the `usd` of input, cached, output and `other`, and `idle_usd`. `other` is device time
    that no answer bears: of requests that were left or broke, and of rows that tell no split. `at_once`: seconds of all engines
    over the clock's, above 1 where several models shared the machine; their time is then scaled to the clock's."""

    since: float
    until: float
    window_s: float
    usd_per_hour: Figure
    machine_usd: float | None
    busy_s: float
    idle_s: float
    idle_usd: float | None
    utilisation: float
    at_once: float
    input: Part
    cached: Part
    output: Part
    other: Part
    total: Part
    energy: Energy
    requests: int
    accepted: int
    supplier_usd: float
    supplier_tokens: int
    unpriced: int


def books(engine: Engine, since: float, until: float, hardware: Hardware | None) -> Books:
    """The books from `since` to `until` (seconds since the epoch), by the ledger's rows. A request belongs to when it began."""
    drawn, steps_s = energy_of(engine, since, until)
    found = totals(engine, since, until, steps_s)
    return reckon(found, hour_of(hardware, drawn), drawn, since, until)


def hour_of(hardware: Hardware | None, drawn: Energy) -> Figure:
    """C_h with the mean of the watts that were drawn, where they are known."""
    if hardware is None:
        return Figure(None, "none", "no hardware profile is set")
    source = f"by {drawn.covered_s:,.0f} s of readings" if drawn.valid_s else ""
    return usd_per_hour(hardware, Figure(drawn.mean_watts, drawn.known, source) if drawn.mean_watts is not None else None)


def reckon(found: Totals, hour: Figure, drawn: Energy, since: float, until: float) -> Books:
    """The pure part of `books`. Raises ValueError for a window without time."""
    window_s = until - since
    if window_s <= 0:
        raise ValueError("a window has some time in it")
    whole = max(found.steps_s, found.device_s)
    at_once = whole / window_s
    scale = 1 / max(1.0, at_once)  # of device-seconds to the clock's
    busy_s = min(whole, window_s)
    each = None if hour.value is None else hour.value / 3600
    share = busy_s / window_s

    def part(tokens: int, device_s: float) -> Part:
        if each is None:
            return Part(tokens, device_s, None, None, None)
        usd = each * device_s * scale
        million = usd / tokens * 1e6 if tokens else None
        return Part(tokens, device_s, usd, million, million / share if million is not None and share else None)

    served = found.input_tokens + found.cached_tokens + found.output_tokens
    total = part(served, whole)
    return Books(
        since=since,
        until=until,
        window_s=window_s,
        usd_per_hour=hour,
        machine_usd=None if each is None else each * window_s,
        busy_s=busy_s,
        idle_s=window_s - busy_s,
        idle_usd=None if each is None else each * (window_s - busy_s),
        utilisation=share,
        at_once=at_once,
        input=part(found.input_tokens, found.input_s),
        cached=part(found.cached_tokens, 0.0),
        output=part(found.output_tokens, found.split_s - found.input_s),
        other=part(0, whole - found.split_s),
        total=total,
        energy=drawn,
        requests=found.requests,
        accepted=found.accepted,
        supplier_usd=found.supplier_usd,
        supplier_tokens=found.supplier_tokens,
        unpriced=found.unpriced,
    )


def totals(engine: Engine, since: float, until: float, steps_s: float = 0.0) -> Totals:
    """The sums of the requests that began in that time."""
    mine, c = attempts.c.backend == "local", attempts.c
    ended = c.duration_s.is_not(None)

    def total(value: Any, where: Any = mine) -> Any:
        return func.coalesce(func.sum(case((where, value), else_=0)), 0)

    sums = {
        "accepted": total(1, c.accepted & c.role.in_(ANSWERS)),
        "input_tokens": total(c.prompt_tokens - c.cached_tokens),
        "cached_tokens": total(c.cached_tokens),
        "output_tokens": total(c.completion_tokens),
        "device_s": total(func.coalesce(c.device_seconds, 0.0)),
        "input_s": total(func.coalesce(c.input_seconds, 0.0)),
        "split_s": total(func.coalesce(c.device_seconds, 0.0), mine & c.input_seconds.is_not(None)),
        "supplier_tokens": total(c.prompt_tokens + c.completion_tokens, ~mine),
        "supplier_usd": total(func.coalesce(c.retail_usd, 0.0), ~mine),
        "unpriced": total(1, ~mine & ended & c.retail_usd.is_(None)),
    }
    of_then = (requests.c.ts >= since) & (requests.c.ts < until)
    query = select(*(value.label(name) for name, value in sums.items())).join_from(
        attempts, requests, attempts.c.request_id == requests.c.id
    )
    with engine.connect() as connection:
        row = connection.execute(query.where(of_then)).mappings().one()
        asked = connection.execute(select(func.count()).select_from(requests).where(of_then)).scalar_one()
    counts = {"accepted", "input_tokens", "cached_tokens", "output_tokens", "supplier_tokens", "unpriced"}
    found: dict[str, Any] = {name: int(row[name]) if name in counts else float(row[name]) for name in sums}
    return Totals(requests=asked, steps_s=steps_s, **found)


def energy_of(engine: Engine, since: float, until: float) -> tuple[Energy, float]:
    """What was drawn in that time, and the seconds of all steps. Where some was measured without a doubt, that is the mean;
    else what was declared. A sampled window that is only partly in it counts with that part."""
    query = select(energy).where(energy.c.ts + energy.c.seconds > since, energy.c.ts < until)
    with engine.connect() as connection:
        rows = connection.execute(query).mappings().all()

    def total(name: str, rows: Sequence[Any]) -> float:
        return sum(
            (row[name] or 0.0) * (min(until, row["ts"] + row["seconds"]) - max(since, row["ts"])) / row["seconds"]
            for row in rows
            if row["seconds"] > 0
        )

    valid = [row for row in rows if row["power_valid"]]
    used = valid or [row for row in rows if row["reason"] == NO_METER]
    covered_s = total("seconds", used)
    if not covered_s:
        return Energy(None, "none", 0.0, 0.0, None, None), total("busy_s", rows)
    joules, rested = total("joules", used), [row for row in used if row["idle_joules"] is not None]
    rest_s = total("idle_s", rested)
    idle_watts = total("idle_joules", rested) / rest_s if rest_s else None
    known = worst(*(row["known"] for row in used))
    drawn = Energy(joules, known, covered_s, total("seconds", valid), joules / covered_s, idle_watts)
    return drawn, total("busy_s", rows)
