"""The books for Prometheus: tokens by place, money, energy, breakers, and whether the ledger keeps up.

Money and energy that nobody knows are left out: a missing number can be alerted on, a false 0 can't.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .services import Life

log = logging.getLogger("baseload.server")


class AccountsCollector(Collector):
    """Reads `services.accounts` and `services.breakers` when somebody asks."""

    def __init__(self, life: Life) -> None:
        self._life = life

    def collect(self) -> Iterator[Metric]:
        services = self._life.services
        if services is None:
            return
        yield _gauge(
            "baseload_breaker_open",
            "1 while a supplier's model is left alone.",
            ("supplier", "model"),
            ((key, float(is_open)) for key, is_open in services.breakers().items()),
        )
        if services.accounts is None:
            return
        try:
            found = services.accounts()
        except Exception:  # one number that can't be had must not take the page with it
            log.exception("the accounts could not be read")
            return
        yield from _ledger(found)
        yield from _places(found.places)
        if found.reserved_usd is not None:
            yield _gauge("baseload_reserved_usd", "What calls under way may yet cost.", (), [((), found.reserved_usd)])
        yield from _energy(found)
        if found.books is not None:
            yield from _books(found.books)


def _ledger(found: Any) -> Iterator[Metric]:
    for name, text, value in (
        ("up", "0 from a failed write of the ledger until one succeeds.", float(found.healthy)),
        ("rows_waiting", "Rows that are not committed yet.", found.waiting),
        ("lag_seconds", "How long the oldest of them has waited.", found.lag_s),
    ):
        yield _gauge(f"baseload_ledger_{name}", text, (), [((), value)])
    for name, text, value in (
        ("rows_rejected", "Rows that no database would take.", found.rejected),
        ("rows_dropped", "Rows given up while nothing could be written.", found.dropped),
    ):
        yield _counter(f"baseload_ledger_{name}", text, (), [((), value)])


def _places(places: dict[str, Any]) -> Iterator[Metric]:
    kinds = ("input", "cached", "output")
    tokens = (((name, kind), getattr(p, f"{kind}_tokens")) for name, p in places.items() for kind in kinds)
    yield _counter("baseload_tokens", "Tokens of calls that ended, failed ones too.", ("place", "kind"), tokens)
    calls = (((name,), p.calls) for name, p in places.items())
    yield _counter("baseload_calls", "Calls of models that ended.", ("place",), calls)
    unpriced = (((name,), p.unpriced) for name, p in places.items())
    yield _counter("baseload_unpriced_calls", "Calls whose cost nobody knows.", ("place",), unpriced)
    retail = (((name,), p.retail_usd) for name, p in places.items() if name != "local")
    yield _counter("baseload_retail_usd", "Suppliers' list prices of their calls.", ("place",), retail)
    if local := places.get("local"):
        yield _counter("baseload_device_seconds", "Device time of local calls.", (), [((), local.device_s)])
        if local.internal_usd:
            yield _counter("baseload_internal_usd", "That time at C_h.", (), [((), local.internal_usd)])


def _energy(found: Any) -> Iterator[Metric]:
    if found.joules is not None:
        known = found.power.mean.known
        yield _counter("baseload_energy_joules", "What the machine drew.", ("known",), [((known,), found.joules)])
    if found.power is not None:
        states = (("mean", found.power.mean), ("busy", found.power.busy), ("idle", found.power.idle))
        watts = [((state, figure.known), figure.value) for state, figure in states if figure.value is not None]
        if watts:
            yield _gauge("baseload_power_watts", "Watts of the last ten minutes.", ("state", "known"), watts)


def _books(books: Any) -> Iterator[Metric]:
    yield _gauge("baseload_utilisation", "Busy share of the time since the start.", (), [((), books.utilisation)])
    hour = books.usd_per_hour
    if hour.value is None:
        return
    yield _gauge("baseload_machine_usd_per_hour", "C_h.", ("known",), [((hour.known,), hour.value)])
    yield _counter("baseload_idle_usd", "C_h x idle time.", (), [((), books.idle_usd)])
    parts = (("input", books.input), ("cached", books.cached), ("output", books.output), ("all", books.total))
    prices = [
        ((reading, kind), value)
        for kind, part in parts
        for reading, value in (("usage", part.usage_usd), ("allocation", part.allocation_usd))
        if value is not None
    ]
    text = "Local dollars for a million tokens since the start: of busy time, or with idle time borne."
    yield _gauge("baseload_usd_per_million_tokens", text, ("reading", "kind"), prices)


Values = Iterable[tuple[tuple[str, ...], float]]


def _gauge(name: str, text: str, labels: tuple[str, ...], values: Values) -> Metric:
    return _filled(GaugeMetricFamily(name, text, labels=labels), values)


def _counter(name: str, text: str, labels: tuple[str, ...], values: Values) -> Metric:
    return _filled(CounterMetricFamily(name, text, labels=labels), values)


def _filled(family: Any, values: Values) -> Metric:
    for labels, value in values:
        family.add_metric(labels, value)
    return family
