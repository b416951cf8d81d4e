"""Numbers for Prometheus: vLLM's names where the meaning is vLLM's, `baseload_` for the rest.

The engine's numbers are read when somebody asks for them; the answers' are counted as they go out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..wire.chat import Event, Failure, Finish, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from .metrics_accounts import AccountsCollector
from .pool_metrics import PoolCollector
from .services import Life

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
GAP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)

# name, help, EngineStats -> value
_GAUGES: tuple[tuple[str, str, Callable[[Any], float]], ...] = (
    ("vllm:num_requests_running", "Sequences in the running batch.", lambda s: s.running),
    ("vllm:num_requests_waiting", "Sequences waiting for a place in it.", lambda s: s.waiting),
    ("vllm:kv_cache_usage_perc", "Used share of the KV cache, 0 to 1.", lambda s: _used(s) / max(1, s.pages_total)),
    ("baseload_kv_pages_total", "Pages of the KV cache.", lambda s: s.pages_total),
    ("baseload_kv_pages_free", "Pages that hold nothing.", lambda s: s.pages_free),
    ("baseload_kv_pages_cached", "Pages that hold a prefix and are in nobody's use.", lambda s: s.pages_cached),
    ("baseload_kv_store_enabled", "1 while KV pages are kept on disk.", lambda s: float(s.kv_store.enabled)),
    ("baseload_kv_store_pages", "KV pages on disk.", lambda s: s.kv_store.pages),
    ("baseload_kv_store_bytes", "Their bytes.", lambda s: s.kv_store.bytes),
    ("baseload_engine_alive", "1 while the engine steps.", lambda s: float(s.alive)),
    ("baseload_engine_last_step_age_seconds", "Seconds since the engine's last step.", lambda s: s.last_step_age_s),
)
_COUNTERS: tuple[tuple[str, str, Callable[[Any], float]], ...] = (
    ("vllm:prompt_tokens", "Prompt tokens taken in.", lambda s: s.prompt_tokens),
    ("vllm:generation_tokens", "Tokens generated.", lambda s: s.generation_tokens),
    ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", lambda s: s.prefix_query_tokens),
    ("vllm:prefix_cache_hits", "Prompt tokens found there.", lambda s: s.prefix_hit_tokens),
    ("vllm:num_preemptions", "Sequences pushed out of the batch, to run again later.", lambda s: s.preemptions),
    ("vllm:spec_decode_num_draft_tokens", "Tokens guessed ahead.", lambda s: s.guessed_tokens),
    ("vllm:spec_decode_num_accepted_tokens", "Guessed tokens that were right.", lambda s: s.kept_tokens),
    ("baseload_engine_steps", "Engine steps.", lambda s: s.steps),
    ("baseload_kv_store_hits", "KV pages read back from disk.", lambda s: s.kv_store.hits),
    ("baseload_kv_store_misses", "Prompts whose next KV page was not on disk.", lambda s: s.kv_store.misses),
    ("baseload_kv_store_corrupt", "Records or files on disk that were not used, being broken.", lambda s: s.kv_store.corrupt),
    ("baseload_kv_store_saved", "KV pages written to disk.", lambda s: s.kv_store.saved),
    ("baseload_kv_store_dropped", "KV pages gone before they were written.", lambda s: s.kv_store.dropped),
)

# The same of the predictors' calibrate.Drift.
_DRIFTS: tuple[tuple[str, str, Callable[[Any], float]], ...] = (
    ("baseload_router_audits", "Audits of answers that a predictor has kept.", lambda d: d.audits),
    ("baseload_router_drift_evidence", "Evidence against its promise; 1 at the start.", lambda d: d.evidence),
    ("baseload_router_threshold_open", "1 where audits have failed, and nothing is kept by it.", lambda d: float(d.alarm)),
)


def _used(stats: Any) -> int:
    return stats.pages_total - stats.pages_free - stats.pages_cached


class _EngineCollector(Collector):
    def __init__(self, life: Life) -> None:
        self._life = life

    def collect(self) -> Iterator[Metric]:
        services = self._life.services
        stats = {name: engine.stats() for name, engine in services.engines().items()} if services else {}
        for kind, table in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
            for name, text, value in table if stats else ():
                family = kind(name, text, labels=["model_name"])
                for model, numbers in stats.items():
                    family.add_metric([model], value(numbers))
                yield family
        drifts = services.drifts() if services else {}
        for name, text, number in _DRIFTS if drifts else ():
            family = GaugeMetricFamily(name, text, labels=["predictor"])
            for predictor, state in drifts.items():
                family.add_metric([predictor], number(state))
            yield family


class Metrics:
    """All numbers of one server, in a registry of its own."""

    def __init__(self, life: Life) -> None:
        self.registry = registry = CollectorRegistry()
        registry.register(_EngineCollector(life))
        registry.register(AccountsCollector(life))
        registry.register(PoolCollector(life))
        model = ("model_name",)
        self.ttft = Histogram(
            "vllm:time_to_first_token_seconds", "Arrival to first token.", model, buckets=SECONDS, registry=registry
        )
        self.gap = Histogram(
            "vllm:inter_token_latency_seconds", "Time between tokens.", model, buckets=GAP_SECONDS, registry=registry
        )
        self.e2e = Histogram(
            "vllm:e2e_request_latency_seconds", "Arrival to last token.", model, buckets=SECONDS, registry=registry
        )
        self.finished = Counter(
            "vllm:request_success", "Choices that ended, by reason.", (*model, "finished_reason"), registry=registry
        )
        self.http = Counter("baseload_http_requests", "HTTP requests.", ("path", "status"), registry=registry)
        self.attempts = Counter("baseload_attempts", "Model calls, by the request's route.", ("route",), registry=registry)
        self.in_flight = Gauge("baseload_answers_in_flight", "Requests being answered.", registry=registry)
        self.in_flight.set_function(lambda: life.in_flight)

    def page(self) -> bytes:
        """All numbers in Prometheus' text format."""
        return generate_latest(self.registry)


class Meter:
    """Watches one answer go by and adds it to the numbers. Seconds are monotonic, counted from `started`."""

    def __init__(self, metrics: Metrics, model: str, started: float) -> None:
        self._metrics, self._model, self._started = metrics, model, started
        self._gap = metrics.gap.labels(model)  # looked up once, not with each token
        self._last: float | None = None
        self.usage: Usage | None = None
        self.failure: Failure | None = None

    def saw(self, events: Sequence[Event]) -> None:
        """These events came together, now."""
        if tokens := _tokens(events):
            self._token_times(tokens, time.monotonic())
        for event in events:
            match event:
                case Usage():
                    self.usage = event
                case Finish():
                    self._metrics.finished.labels(self._model, event.reason).inc()
                case Failure():
                    self.failure = event
                    self._metrics.finished.labels(self._model, "error").inc()
                case _:
                    pass

    def over(self, route: str, attempts: int, gone: bool) -> None:
        """The answer is over; `gone`: its client left before the end."""
        if gone:
            self._metrics.finished.labels(self._model, "abort").inc()
        elif self.failure is None:
            self._metrics.e2e.labels(self._model).observe(time.monotonic() - self._started)
        if attempts:
            self._metrics.attempts.labels(route).inc(attempts)

    def _token_times(self, tokens: int, now: float) -> None:
        if self._last is None:
            self._metrics.ttft.labels(self._model).observe(now - self._started)
            tokens -= 1
        gap = (now - (self._last or now)) / max(1, tokens)
        for _ in range(tokens):
            self._gap.observe(gap)
        self._last = now


def _tokens(events: Iterable[Event]) -> int:
    return sum(event.tokens for event in events if isinstance(event, TextDelta | ReasoningDelta | ToolCallDelta))
