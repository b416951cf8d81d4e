"""`baseload bench serving`: latency, throughput and goodput of any OpenAI-compatible server under load."""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import aiohttp
import psutil
import typer
import uvloop
from rich.console import Console

from .load_client import PATHS, Result, Target, ask, closed_loop, open_loop
from .machine import Watch, describe, find_server, versions
from .plot import draw
from .prompts import Generated, Listed, read_prompts
from .report import Report, Row, make_row, notes, page, table
from .stats import Slo, parse_slo, poisson_arrivals, positive


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
    """Run every row and report. `tell` hears of each row when it is done. Raises ValueError or OSError for a bad prompt file."""
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

    def __init__(
        self, options: Options, session: aiohttp.ClientSession, target: Target, source: Generated | Listed
    ) -> None:
        self._options, self._session, self._target, self._source = options, session, target, source
        parts = urlsplit(target.base_url)
        self._local = parts.hostname in ("127.0.0.1", "localhost", "::1")
        self._server: psutil.Process | None = find_server(parts.port or 80) if self._local else None
        shared = isinstance(source, Generated) and source.shared_tokens > 0
        self._cache = "unsalted" if not options.salt else "warm" if shared else "cold"

    async def rows(self):
        """Each row when it is done: the shared prefixes, then the closed loops, then the open ones."""
        o = self._options
        requests = None if o.duration_s else o.requests
        if isinstance(self._source, Generated) and self._source.shared_tokens:
            async with self._watch() as watch:
                cold, warm = await self._prefixes(self._source)
            yield make_row("prefix", 1, "cold" if o.salt else "unsalted", cold, o.slo, watch.seen)
            yield make_row("prefix", 1, "warm", warm, o.slo, watch.seen)
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

    async def _prefixes(self, source: Generated) -> tuple[list[Result], list[Result]]:
        """Each shared prefix twice with different ends, alone on the server: the first is cold, the second warm."""
        both: tuple[list[Result], list[Result]] = ([], [])
        for k in range(source.prefixes):
            for half, results in enumerate(both):
                prompt = source.prompt(f"prefix/{half}", k)
                results.append(await ask(self._session, self._target, prompt))
        return both


# ------------------------------------------------------------------------------------------------------ command line


def _numbers(text: str, name: str) -> tuple[float, ...]:
    try:
        return tuple(positive(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a list of positive numbers", param_hint=name) from error


def _slo(text: str) -> Slo | None:
    try:
        return parse_slo(text) if text else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--slo") from error


def serving(
    model: Annotated[str, typer.Option(help="The model's name on that server.")] = "local",
    url: Annotated[str, typer.Option(help="The server.")] = "http://127.0.0.1:8787",
    endpoint: Annotated[str, typer.Option(help="chat or completions.")] = "chat",
    concurrency: Annotated[str, typer.Option(help="Closed loop: how many clients at once; a list.")] = "1,8,32",
    rate: Annotated[str, typer.Option(help="Open loop: requests per second (Poisson); a list.")] = "",
    requests: Annotated[int, typer.Option(min=1, help="Requests for each row.")] = 64,
    duration: Annotated[float | None, typer.Option(min=0.1, help="Seconds for each row, instead of --requests.")] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Requests before the first row that count nowhere.")] = 2,
    input_tokens: Annotated[int, typer.Option(min=1, help="Words of each prompt; about as many tokens.")] = 128,
    output_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 128,
    shared_prefix_tokens: Annotated[int, typer.Option(min=0, help="Words at a prompt's start that others share.")] = 0,
    prefixes: Annotated[int, typer.Option(min=1, help="How many such shared starts there are.")] = 4,
    prompts: Annotated[Path | None, typer.Option(help="JSON lines with prompt or messages, instead.")] = None,
    seed: Annotated[int, typer.Option(help="Of prompts and arrival times.")] = 0,
    salt: Annotated[bool, typer.Option(help="Make prompts this run's own, so that no cache knows them.")] = True,
    temperature: Annotated[float, typer.Option(min=0)] = 0.0,
    ignore_eos: Annotated[bool, typer.Option(help="Answers of full length, where the server can.")] = True,
    slo: Annotated[str, typer.Option(help="Limits for goodput in seconds: ttft=0.5,tpot=0.05,e2e=10")] = "",
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one request.")] = 600.0,
    api_key_env: Annotated[str, typer.Option(help="Variable that holds the server's key.")] = "BASELOAD_API_KEY",
    json: Annotated[Path | None, typer.Option(help="Write the report as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write it as one web page.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the picture.")] = None,
) -> None:
    """Load an OpenAI-compatible server and report its latency, throughput and goodput."""
    if endpoint not in PATHS:
        raise typer.BadParameter("chat or completions", param_hint="--endpoint")
    options = Options(
        url=url,
        model=model,
        endpoint=endpoint,
        concurrency=tuple(int(n) for n in _numbers(concurrency, "--concurrency")),
        rates=_numbers(rate, "--rate"),
        requests=requests,
        duration_s=duration,
        warmup=warmup,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        shared_prefix_tokens=shared_prefix_tokens,
        prefixes=prefixes,
        prompts=prompts,
        seed=seed,
        salt=secrets.token_hex(6) if salt else "",
        temperature=temperature,
        ignore_eos=ignore_eos,
        slo=_slo(slo),
        timeout_s=timeout,
        api_key=os.environ.get(api_key_env, ""),
    )
    _show(options, json, html, png)
