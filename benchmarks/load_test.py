"""One load test: what it is told, its rows one after the other, and the report."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, replace
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
from .slo import Tier
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
    repeats: int = 1  # of every row, in turns, each with prompts and arrivals of its own
    tiers: tuple[Tier, ...] = ()  # service levels that goodput is told for; `slo` goes first

    def __post_init__(self) -> None:
        if self.repeats > 1 and not self.salt:
            raise ValueError("repetitions without a salt would be answered from the cache of the one before")

    def target(self) -> Target:
        """Where and how to ask. `ignore_eos` is sent only when on: not every server knows it."""
        fields: dict[str, Any] = {"temperature": self.temperature, **({"ignore_eos": True} if self.ignore_eos else {})}
        headers = {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return Target(base_url(self.url), self.model, self.endpoint, headers, fields, self.timeout_s)

    def source(self) -> Generated | Listed:
        """The prompts. Raises ValueError or OSError for a bad file."""
        if self.prompts:
            return Listed(read_prompts(self.prompts, self.output_tokens), self.salt)
        return Generated(
            self.input_tokens, self.output_tokens, self.seed, self.salt, self.shared_prefix_tokens, max(1, self.prefixes)
        )


def base_url(url: str) -> str:
    """The address with /v1, which may be given with or without."""
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
            server=await about(session, target),
            workload=_workload(options),
        )
        bench = _Bench(options, session, target, source)
        await closed_loop(session, target, source.stream("warm-up"), 1, options.warmup)
        for repeat in range(1, options.repeats + 1):
            async for row in bench.rows(repeat):
                report.rows.append(row)
                tell(row)
    return report


def _workload(options: Options) -> dict[str, Any]:
    hidden = {"url", "model", "api_key"}
    return {name: str(v) if isinstance(v, Path) else v for name, v in asdict(options).items() if name not in hidden}


async def about(session: aiohttp.ClientSession, target: Target) -> dict[str, Any]:
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


def seen_at(url: str) -> tuple[psutil.Process | None, bool]:
    """The server's process where it can be seen, and whether it runs on this machine: what Watch wants to know."""
    parts = urlsplit(url)
    is_local = parts.hostname in ("127.0.0.1", "localhost", "::1")
    return find_server(parts.port or 80) if is_local else None, is_local


class _Bench:
    """The rows of one run, one after the other."""

    def __init__(self, options: Options, session: aiohttp.ClientSession, target: Target, source: Generated | Listed) -> None:
        self._options, self._session, self._target, self._source = options, session, target, source
        self._server, self._local = seen_at(target.base_url)
        shared = isinstance(source, Generated) and source.shared_tokens > 0
        self._cache = "unsalted" if not options.salt else "warm" if shared else "cold"

    async def rows(self, repeat: int = 1) -> AsyncIterator[Row]:
        """Each row when it is done: the shared prefixes, then the closed loops, then the open ones."""
        o, again = self._options, f"/{repeat}" if repeat > 1 else ""
        source = self._source
        if again and isinstance(source, Generated):  # shared prefixes, too, are new in each repetition
            source = replace(source, salt=f"{source.salt}{again}")
        requests = None if o.duration_s else o.requests
        if isinstance(source, Generated) and source.shared_tokens:
            # Each shared prefix twice, with different ends and nothing beside it: the first request is cold, the second warm.
            for cache in ("cold", "warm"):
                async with self._watch() as watch:
                    asked = [source.prompt(f"prefix/{cache}", k) for k in range(source.prefixes)]
                    results = [await ask(self._session, self._target, prompt) for prompt in asked]
                yield make_row("prefix", 1, cache if o.salt else "unsalted", results, o.slo, watch.seen, repeat, o.tiers)
        for n in o.concurrency:
            async with self._watch() as watch:
                prompts = source.stream(f"closed/{n}{again}")
                results = await closed_loop(self._session, self._target, prompts, n, requests, o.duration_s)
            yield make_row("closed", n, self._cache, results, o.slo, watch.seen, repeat, o.tiers)
        for rate in o.rates:
            arrivals = poisson_arrivals(rate, o.seed + repeat - 1, requests, o.duration_s)
            async with self._watch() as watch:
                results = await open_loop(self._session, self._target, source.stream(f"open/{rate}{again}"), arrivals)
            yield make_row("open", rate, self._cache, results, o.slo, watch.seen, repeat, o.tiers)

    def _watch(self) -> Watch:
        return Watch(self._server, self._local)
