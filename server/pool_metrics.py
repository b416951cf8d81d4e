"""The numbers of replicas, read when somebody asks for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .services import Life

# kind, name, help, Replica -> value
_NUMBERS: tuple[tuple[Any, str, str, Callable[[Any], float]], ...] = (
    (GaugeMetricFamily, "baseload_replica_up", "1 while the replica takes requests.", lambda r: float(r.seat.is_open)),
    (GaugeMetricFamily, "baseload_replica_in_flight", "Requests that it is answering.", lambda r: r.in_flight),
    (CounterMetricFamily, "baseload_replica_answered", "Requests that it answered.", lambda r: r.answered),
    (CounterMetricFamily, "baseload_replica_failed", "Requests that it broke off or was too busy for.", lambda r: r.failed),
    (CounterMetricFamily, "baseload_replica_downs", "How often it went down.", lambda r: r.downs),
)

_FAMILY = re.compile(rb"(?=^# HELP )", re.MULTILINE)
_NAMED = re.compile(rb"# HELP (vllm:\S+) ")


def merged(page: bytes, more: Iterable[bytes | None]) -> bytes:
    """Our page with what engines of their own tell of themselves: those of vLLM's families that ours does not have."""
    known = set(_NAMED.findall(page))
    for other in more:
        for family in _FAMILY.split(other or b""):
            named = _NAMED.match(family)
            if named and named[1] not in known:
                page += family if family.endswith(b"\n") else family + b"\n"
                known.add(named[1])
    return page


class PoolCollector(Collector):
    """Of all pools of the server."""

    def __init__(self, life: Life) -> None:
        self._life = life

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        pools = self._life.services.pools if self._life.services else ()
        for kind, name, text, value in _NUMBERS if pools else ():
            family = kind(name, text, labels=["model_name", "replica"])
            for pool in pools:
                for replica in pool.replicas.values():
                    family.add_metric([pool.models[0].id, replica.name], value(replica))
            yield family
        if pools:
            family = CounterMetricFamily("baseload_replica_retries", "Requests that were tried again.", labels=["model_name"])
            for pool in pools:
                family.add_metric([pool.models[0].id], pool.retries)
            yield family
