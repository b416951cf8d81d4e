"""`baseload bench meters`: our own load client beside two others, AIPerf and guidellm, on one running server.

The same closed loop three times in turns, each round beginning with another meter: as many clients, requests, prompt and
answer tokens, answers of full length, new prompts in every round. What is compared is what all three call by one name: time to
first token, time per token after it (their "inter token latency"), time of a whole answer, and output tokens a second. They
are programs of their own, given by path, in environments of their own.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from .command import run_command
from .load_test import Options
from .load_test import run as run_load
from .machine import NOISY_HOST, Watch, describe, versions

TIMEOUT_S = 580.0
NAMES = ("TTFT p50, ms", "per token p50, ms", "answer p50, s", "output tokens/s")


class Failed(RuntimeError):
    """A meter did not end well; its last words."""


@dataclass(frozen=True, slots=True)
class Load:
    """What each meter is to do."""

    url: str
    model: str
    tokenizer: Path  # a folder in Hugging Face's form, of the served model
    clients: int
    requests: int
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Reading:
    """One meter in one round."""

    ttft_ms: float
    per_token_ms: float
    answer_s: float
    tokens_per_s: float
    others_cpu: (
        float | None
    )  # share of the cores that neither the server nor this process used: the meter's own, where it is one

    @property
    def values(self) -> tuple[float, float, float, float]:
        """In NAMES' order."""
        return self.ttft_ms, self.per_token_ms, self.answer_s, self.tokens_per_s


def own(load: Load, seed: int) -> tuple[float, float, float, float]:
    """This project's client. Raises Failed."""
    options = Options(
        load.url,
        load.model,
        concurrency=(load.clients,),
        requests=load.requests,
        warmup=0,
        input_tokens=load.input_tokens,
        output_tokens=load.output_tokens,
        seed=seed,
        salt=secrets.token_hex(6),
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        row = runner.run(run_load(options)).rows[0]
    if row.ok < load.requests or None in (row.ttft_s.p50, row.tpot_s.p50, row.e2e_s.p50):
        raise Failed(f"{row.ok} of {load.requests} answered: {row.errors}")
    ttft, tpot, e2e = (value or 0.0 for value in (row.ttft_s.p50, row.tpot_s.p50, row.e2e_s.p50))
    return ttft * 1000, tpot * 1000, e2e, row.output_tokens_per_s


def aiperf(program: Path, load: Load, seed: int) -> tuple[float, float, float, float]:
    """NVIDIA's. It needs a variable unset that others need set: with HF_HUB_OFFLINE a local tokenizer fails (0.13.0)."""
    with tempfile.TemporaryDirectory() as folder:
        words = [str(program), "profile", "--model", load.model, "--url", load.url, "--endpoint-type", "chat", "--streaming"]
        words += ["--tokenizer", str(load.tokenizer.resolve()), "--extra-inputs", "ignore_eos:true", "--ui", "none"]
        words += ["--extra-inputs", "temperature:0"]
        words += ["--isl", str(load.input_tokens), "--osl", str(load.output_tokens), "--concurrency", str(load.clients)]
        words += ["--request-count", str(load.requests), "--random-seed", str(seed), "--output-artifact-dir", folder]
        _run(words, {"HF_HUB_OFFLINE": None}, Path(folder))
        found = json.loads((Path(folder) / "profile_export_aiperf.json").read_text("utf-8"))
    if (done := found["request_count"]["avg"]) < load.requests:
        raise Failed(f"aiperf: {done:.0f} of {load.requests} answered")
    return (
        found["time_to_first_token"]["p50"],
        found["inter_token_latency"]["p50"],
        found["request_latency"]["p50"] / 1000,
        found["output_token_throughput"]["avg"],
    )


def guidellm(program: Path, load: Load, seed: int) -> tuple[float, float, float, float]:
    """vLLM's."""
    with tempfile.TemporaryDirectory() as folder:
        data = f"kind=synthetic_text,prompt_tokens={load.input_tokens},output_tokens={load.output_tokens}"
        words = [str(program), "run", "--backend", f"kind=openai_http,target={load.url},model={load.model}"]
        words += ["--tokenizer", f"kind=hf_auto,model={load.tokenizer.resolve()}", "--data", data]
        words += ["--profile", f"kind=concurrent,streams={load.clients}", "--seed", f"kind=static,value={seed}"]
        words += ["--constraint", f"kind=max_requests,count={load.requests}", "--output", f"kind=json,path={folder}/r.json"]
        _run([*words, "--disable-console-interactive"], {"HF_HUB_OFFLINE": "1"}, Path(folder))
        found = json.loads((Path(folder) / "r.json").read_text("utf-8"))["benchmarks"][0]["metrics"]
    if (done := found["request_totals"]["successful"]) < load.requests:
        raise Failed(f"guidellm: {done} of {load.requests} answered")

    def middle(name: str) -> float:
        return found[name]["successful"]["median"]

    rate = found["output_tokens_per_second"]["successful"]["mean"]
    return middle("time_to_first_token_ms"), middle("inter_token_latency_ms"), middle("request_latency"), rate


def _run(words: Sequence[str], environment: Mapping[str, str | None], folder: Path) -> None:
    whole = {key: value for key, value in {**os.environ, **environment}.items() if value is not None}
    whole.pop("PYTHONPATH", None)  # theirs is another Python
    try:
        done = subprocess.run(words, env=whole, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"{words[0]}: {error}") from error
    if done.returncode:
        raise Failed(f"{words[0]} ended with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")


Meter = Callable[[Load, int], tuple[float, float, float, float]]


def compare(meters: Mapping[str, Meter], load: Load, rounds: int, tell: Callable[[str], None]) -> dict[str, list[Reading]]:
    """In turns. Raises Failed."""
    names = list(meters)
    found: dict[str, list[Reading]] = {name: [] for name in names}

    async def once(name: str, seed: int) -> Reading:
        async with Watch(None, local=False) as watch:
            values = await asyncio.to_thread(meters[name], load, seed)
        return Reading(*values, watch.seen.others_cpu)

    for n in range(rounds):
        for name in names[n % len(names) :] + names[: n % len(names)]:
            found[name].append(asyncio.run(once(name, 1000 * secrets.randbelow(1000) + n)))
            tell(f"round {n + 1}: {name}: " + ", ".join(f"{v:.4g}" for v in found[name][-1].values))
    return found


def table(found: Mapping[str, Sequence[Reading]]) -> list[list[str]]:
    """A line for each meter: medians over the rounds, in brackets the least and the most, and how far from ours."""
    first = next(iter(found))
    lines: list[list[str]] = []
    for name, readings in found.items():
        cells = [name]
        for k in range(len(NAMES)):
            values, ours = [r.values[k] for r in readings], [r.values[k] for r in found[first]]
            said = f"{median(values):.4g} ({min(values):.4g} to {max(values):.4g})"
            cells.append(said if name == first else f"{said}, {median(values) / median(ours) - 1:+.1%}")
        lines.append(cells)
    return lines


def command(
    tokenizer: Annotated[Path, typer.Option(help="Folder with the served model's tokenizer.json, for the others.")],
    aiperf_program: Annotated[Path | None, typer.Option("--aiperf", help="The program, in its own environment.")] = None,
    guidellm_program: Annotated[Path | None, typer.Option("--guidellm", help="Likewise.")] = None,
    url: Annotated[str, typer.Option(help="The server.")] = "http://127.0.0.1:8787",
    model: Annotated[str, typer.Option(help="The model's name there.")] = "local",
    clients: Annotated[int, typer.Option(min=1, help="At once.")] = 4,
    requests: Annotated[int, typer.Option(min=1, help="Of each meter in each round.")] = 32,
    input_tokens: Annotated[int, typer.Option(min=1, help="Of each prompt, its template not counted.")] = 128,
    output_tokens: Annotated[int, typer.Option(min=2, help="Of each answer.")] = 64,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    tolerance: Annotated[float, typer.Option(min=0, help="Share that medians may differ by.")] = 0.1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every reading.")] = None,
) -> None:
    """Measure one server with three meters: ours, AIPerf and guidellm."""
    load = Load(url, model, tokenizer, clients, requests, input_tokens, output_tokens)
    meters: dict[str, Meter] = {"baseload": own}
    if aiperf_program:
        meters["aiperf"] = lambda asked, seed: aiperf(aiperf_program, asked, seed)
    if guidellm_program:
        meters["guidellm"] = lambda asked, seed: guidellm(guidellm_program, asked, seed)
    progress = Console(stderr=True, highlight=False, markup=False)
    try:
        own(load, 0)  # warms the server up
        found = compare(meters, load, rounds, progress.print)
    except Failed as error:
        progress.print(f"error: {error}")
        raise typer.Exit(1) from error
    shown = Table("", *NAMES, box=None)
    for line in table(found):
        shown.add_row(*line)
    Console(highlight=False, width=200).print(shown)
    ours = [median(values) for values in zip(*(r.values for r in found["baseload"]), strict=True)]
    far: list[str] = []
    for name, readings in found.items():
        theirs = [median(values) for values in zip(*(r.values for r in readings), strict=True)]
        far += [f"{name}: {what}" for what, a, b in zip(NAMES, ours, theirs, strict=True) if abs(b / a - 1) > tolerance]
    progress.print(f"beyond {tolerance:.0%}: {', '.join(far)}" if far else f"all within {tolerance:.0%}")
    noisy = [r.others_cpu for r in found["baseload"] if r.others_cpu is not None and r.others_cpu > NOISY_HOST]
    if noisy:
        progress.print(f"beside our client and with the server, other processes used up to {max(noisy):.0%} of the cores")
    if json_file:
        said: dict[str, Any] = {"machine": describe(), "versions": versions(), "load": asdict(load)}
        said["readings"] = {name: [asdict(r) for r in readings] for name, readings in found.items()}
        json_file.write_text(json.dumps(said, indent=1, default=str), "utf-8")


def main(words: Sequence[str] | None = None) -> int:
    """See run_command."""
    return run_command(command, "meters", words)


if __name__ == "__main__":
    sys.exit(main())
