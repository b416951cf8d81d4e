"""`baseload bench gateway`: what a server adds between a client and a supplier, beside asking the supplier directly.

The supplier is a stand-in that answers at once, so that everything seen is the gateway's own. Targets are driven one at a time
and in turns, each round beginning with another; figures are medians over the rounds. Without --direct a stand-in is started,
without --baseload a server in front of it, with a ledger of its own; both end with the command.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated
from urllib.parse import urlsplit

import psutil
import typer
import uvloop

from .command import run_command
from .gateway_client import Answers, Target, closed_loop
from .gateway_servers import SUPPLIER, started
from .machine import BUSY_CLIENT, describe, find_server, tree_seconds, versions
from .stand_in import MODEL
from .stats import Summary, summarise


@dataclass(frozen=True, slots=True)
class Run:
    """One target in one round: alone, and under load."""

    whole: Summary  # one client, to the last byte
    first: Summary  # one client, a stream's first word
    whole_rate: float  # answers a second under load
    stream_rate: float
    cpu_us: dict[str, float]  # CPU time for each answer under load, not streamed: of "client", "stand-in" and "server"
    client_cpu: float  # of one core, at most


class Failed(RuntimeError):
    """An answer was not the stand-in's."""


def checked(name: str, answers: Answers) -> Answers:
    """Raises Failed where one answer was wrong: such a run measures nothing."""
    if answers.errors:
        raise Failed(f"{name}: {answers.errors}, beside {len(answers.whole_s)} good answers")
    return answers


async def once(name: str, target: Target, standin: str, tokens: int, requests: int, clients: int, seconds: float) -> Run:
    """Drive one target. Raises Failed."""
    alone, streamed = [
        checked(name, (await closed_loop(target, 1, tokens, streaming=s, requests=requests))[0]) for s in (False, True)
    ]
    processes = {"stand-in": process_at(standin)} | ({"server": process_at(target.url)} if target.url != standin else {})

    def spent() -> dict[str, float]:
        # Not the client's whole tree: what this command started hangs on it.
        return {"client": time.process_time(), **{who: tree_seconds(process) for who, process in processes.items() if process}}

    before = spent()
    load, took = await closed_loop(target, clients, tokens, streaming=False, duration_s=seconds)
    used = {who: after - before[who] for who, after in spent().items()}
    stream_load, stream_took = await closed_loop(target, clients, tokens, streaming=True, duration_s=seconds)
    answered, streams = len(checked(name, load).whole_s), len(checked(name, stream_load).whole_s)
    return Run(
        whole=summarise(alone.whole_s),
        first=summarise(streamed.first_s),
        whole_rate=answered / took,
        stream_rate=streams / stream_took,
        cpu_us={who: s / answered * 1e6 for who, s in used.items()},
        client_cpu=used["client"] / took,
    )


def process_at(url: str) -> psutil.Process | None:
    """The process on this machine behind `url`; None if it cannot be seen."""
    return find_server(urlsplit(url).port or 80)


async def compare(
    targets: Mapping[str, Target], tokens: int, requests: int, clients: int, seconds: float, rounds: int
) -> dict[str, list[Run]]:
    """A Run for each target and round, in turns."""
    names, standin = list(targets), targets["direct"].url
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for name in names:  # warms up
        for streaming in (False, True):
            warm, _ = await closed_loop(targets[name], clients, tokens, streaming=streaming, requests=clients * 4)
            checked(name, warm)
    for n in range(rounds):
        for name in names[n % len(names) :] + names[: n % len(names)]:
            runs[name].append(await once(name, targets[name], standin, tokens, requests, clients, seconds))
            last = runs[name][-1]
            print(f"round {n + 1}: {name}: p50 {ms(last.whole.p50)} ms, {last.whole_rate:,.0f} requests/s", file=sys.stderr)
    return runs


def ms(seconds: float | None) -> str:
    """Milliseconds, for people."""
    return "-" if seconds is None else f"{seconds * 1000:.2f}"


def table(runs: Mapping[str, Sequence[Run]], clients: int) -> str:
    """A Markdown table, a line for each target; "added" is to the direct call, of medians."""

    def middle(name: str, value: Callable[[Run], float | None]) -> float | None:
        values = [v for v in map(value, runs[name]) if v is not None]
        return median(values) if values else None

    def added(name: str, value: Callable[[Run], float | None]) -> str:
        own, direct = middle(name, value), middle("direct", value)
        return "" if name == "direct" or own is None or direct is None else ms(own - direct)

    heads = ["", "p50, ms", "p90", "p99", "added p50", "first word p50, ms", "added", f"requests/s, {clients} clients"]
    heads += [f"streams/s, {clients} clients", "server CPU, us a request"]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for name in runs:
        cells = [ms(middle(name, lambda r, q=q: getattr(r.whole, q))) for q in ("p50", "p90", "p99")]
        cells += [
            added(name, lambda r: r.whole.p50),
            ms(middle(name, lambda r: r.first.p50)),
            added(name, lambda r: r.first.p50),
        ]
        cells += [f"{middle(name, lambda r: r.whole_rate) or 0:,.0f}", f"{middle(name, lambda r: r.stream_rate) or 0:,.0f}"]
        server = middle(name, lambda r: r.cpu_us.get("server"))
        lines.append(f"| {name} | " + " | ".join([*cells, "" if server is None else f"{server:,.0f}"]) + " |")
    return "\n".join(lines)


def command(
    direct: Annotated[str, typer.Option(help="The stand-in (benchmarks/stand_in.py); else one is started.")] = "",
    baseload: Annotated[str, typer.Option(help="A server with the stand-in as a supplier; else one is started.")] = "",
    litellm: Annotated[str, typer.Option(help="A LiteLLM proxy with the stand-in behind it, to measure beside.")] = "",
    baseload_model: Annotated[str, typer.Option(help="What the server calls it.")] = f"{SUPPLIER}/{MODEL}",
    litellm_model: Annotated[str, typer.Option(help="What the proxy calls it.")] = MODEL,
    litellm_key: Annotated[str, typer.Option(envvar="LITELLM_MASTER_KEY")] = "",
    model: Annotated[str, typer.Option(help="Local model of a server that is started; else the configured one.")] = "",
    tokens: Annotated[int, typer.Option(min=1, help="Of each answer, as the stand-in was told.")] = 16,
    requests: Annotated[int, typer.Option(min=1, help="By one client, for latencies.")] = 1000,
    clients: Annotated[int, typer.Option(min=1, help="Under load.")] = 32,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each load.")] = 5.0,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure as JSON.")] = None,
) -> None:
    """Measure what gateways add to a supplier's answers."""
    with ExitStack() as ends:
        if not direct or not baseload:
            direct, baseload = started(ends, direct, baseload, tokens, model)
        targets = {"direct": Target(direct, MODEL), "baseload": Target(baseload, baseload_model)}
        if litellm:
            key = {"authorization": f"Bearer {litellm_key}"} if litellm_key else {}
            targets["litellm"] = Target(litellm, litellm_model, key)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            try:
                runs = runner.run(compare(targets, tokens, requests, clients, seconds, rounds))
            except (Failed, OSError) as error:
                print(f"error: {error}", file=sys.stderr)
                raise typer.Exit(1) from error
    print(table(runs, clients))
    print(f"\n{rounds} rounds in turns, medians; answers of {tokens} tokens; {requests} requests by one client.")
    if any(run.client_cpu > BUSY_CLIENT for name in runs if name != "direct" for run in runs[name]):
        print("The client used more than 80 % of a core: rates are a lower bound.")
    if json_file:
        figures = {name: [asdict(run) for run in own] for name, own in runs.items()}
        options = {"tokens": tokens, "requests": requests, "clients": clients, "seconds": seconds, "rounds": rounds}
        said = {"machine": describe(), "versions": versions(), "options": options, "runs": figures}
        json_file.write_text(json.dumps(said, indent=1), "utf-8")


def main(words: Sequence[str] | None = None) -> int:
    """See run_command."""
    return run_command(command, "gateway", words)


if __name__ == "__main__":
    sys.exit(main())
