"""The present moment in numbers: the engines' own counters, which the page turns into rates. Costs nothing to read."""

from __future__ import annotations

import time
from typing import Any

from ..services import Life


def now(life: Life) -> dict[str, Any]:
    """`clock` is monotonic seconds: a rate is a counter's difference over the clock's, whatever the machine's time does."""
    engines = life.services.engines() if life.services else {}
    return {
        "clock": time.monotonic(),
        "ts": time.time(),
        "phase": life.phase,
        "in_flight": life.in_flight,
        "engines": [_engine(name, engine.stats()) for name, engine in engines.items()],
    }


def _engine(name: str, stats: Any) -> dict[str, Any]:
    counters = ("running", "waiting", "prompt_tokens", "generation_tokens", "prefix_query_tokens", "prefix_hit_tokens", "alive")
    used = stats.pages_total - stats.pages_free - stats.pages_cached
    pages = {"pages_used": used, "pages_cached": stats.pages_cached, "pages_total": stats.pages_total}
    return {
        "name": name,
        **{field: getattr(stats, field) for field in counters},
        **pages,
        "device_seconds": stats.device_seconds,
    }
