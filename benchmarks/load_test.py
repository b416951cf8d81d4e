"""One load test: what it is told, its rows one after the other, and the report."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import psutil

from .load_client import Target, ask, closed_loop, open_loop
from .machine import Watch, describe, find_server, versions
from .prompts import Generated, Listed, read_prompts
from .report import Report, Row, make_row
from .stats import Slo, poisson_arrivals


@dataclass(frozen=True, slots=True)
class Options:
    """One load test. Without `duration_s`, each row is `requests` requests."""

    url: str
    model: str
    endpoint: str = "chat"
    concurrency: tuple[int, ...] = (1, 8, 32)
    rates: tuple[float, ...] = ()  # requests per second
    requests: int = 64
    duration_s: float | None = None
    warmup: int = 2
    input_tokens: int = 128
    output_tokens: int = 128
    shared_prefix_tokens: int = 0
    prefixes: int = 4
    prompts: Path | None = None
    seed: int = 0
    salt: str = ""  # empty: the same prompts in every run
    temperature: float = 0.0
    ignore_eos: bool = True
    slo: Slo | None = None
    timeout_s: float = 600.0
    api_key: str = ""

    def target(self) -> Target:
        """Where and how to ask. `ignore_eos` is sent only when on: not every server knows it."""
        fields: dict[str, Any] = {"temperature": self.temperature, **({"ignore_eos": True} if self.ignore_eos else {})}
        headers = {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return Target(_base(self.url), self.model, self.endpoint, headers, fields, self.timeout_s)

    def source(self) -> Generated | Listed:
        """The prompts. Raises ValueError or OSError for a bad file."""
        if self.prompts:
            return Listed(read_prompts(self.prompts, self.output_tokens), self.salt)
        return Generated(
            self.input_tokens, self.output_tokens, self.seed, self.salt, self.shared_prefix_tokens, max(1, self.prefixes)
        )


def _base(url: str) -> str:
    url = url.rstrip("/")
    return url if url.endswith("/v1") else f"{url}/v1"


async def run(options: Options, command: str = "", tell: Callable[[Row], None] = lambda row: None) -> Report:
    """Run every row and report; `tell` hears of each when it is done. Raises ValueError or OSError for a bad prompt file."""
    target = options.target()
    source = options.source()
    async with target.session() as session:
        report = Report(
            command=command,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=versions(),
            machine=describe(),
            server=await _about(session, target),
            workload=_workload(options),
        )
        bench = _Bench(options, session, target, source)
        await closed_loop(session, target, source.stream("warm-up"), 1, options.warmup)
        async for row in bench.rows():
            report.rows.append(row)
            tell(row)
    return report


def _workload(options: Options) -> dict[str, Any]:
    hidden = {"url", "model", "api_key"}
    return {name: str(v) if isinstance(v, Path) else v for name, v in asdict(options).items() if name not in hidden}


async def _about(session: aiohttp.ClientSession, target: Target) -> dict[str, Any]:
    """What the server says of itself and of the model; best effort."""
    about: dict[str, Any] = {"url": target.base_url, "model": target.model, "endpoint": target.endpoint}
    try:
        async with session.get(f"{target.base_url}/models", timeout=aiohttp.ClientTimeout(total=10)) as response:
            about["software"] = response.headers.get("server")
            known = (await response.json(content_type=None))["data"]
        about["model_info"] = next((model for model in known if model["id"] == target.model), None)
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
        about["model_info"] = None
    return about


class _Bench:
    """The rows of one run, one after the other."""

    def __init__(self, options: Options, session: aiohttp.ClientSession, target: Target, source: Generated | Listed) -> None:
        self._options, self._session, self._target, self._source = options, session, target, source
        parts = urlsplit(target.base_url)
        self._local = parts.hostname in ("127.0.0.1", "localhost", "::1")
        self._server: psutil.Process | None = find_server(parts.port or 80) if self._local else None
        shared = isinstance(source, Generated) and source.shared_tokens > 0
        self._cache = "unsalted" if not options.salt else "warm" if shared else "cold"

    async def rows(self) -> AsyncIterator[Row]:
        """Each row when it is done: the shared prefixes, then the closed loops, then the open ones."""
        o = self._options
        requests = None if o.duration_s else o.requests
        if isinstance(self._source, Generated) and self._source.shared_tokens:
            # Each shared prefix twice, with different ends and nothing beside it: the first request is cold, the second warm.
            for cache in ("cold", "warm"):
                async with self._watch() as watch:
                    asked = [self._source.prompt(f"prefix/{cache}", k) for k in range(self._source.prefixes)]
                    results = [await ask(self._session, self._target, prompt) for prompt in asked]
                yield make_row("prefix", 1, cache if o.salt else "unsalted", results, o.slo, watch.seen)
        for n in o.concurrency:
            async with self._watch() as watch:
                prompts = self._source.stream(f"closed/{n}")
                results = await closed_loop(self._session, self._target, prompts, n, requests, o.duration_s)
            yield make_row("closed", n, self._cache, results, o.slo, watch.seen)
        for rate in o.rates:
            arrivals = poisson_arrivals(rate, o.seed, requests, o.duration_s)
            async with self._watch() as watch:
                results = await open_loop(self._session, self._target, self._source.stream(f"open/{rate}"), arrivals)
            yield make_row("open", rate, self._cache, results, o.slo, watch.seen)

    def _watch(self) -> Watch:
        return Watch(self._server, self._local)
