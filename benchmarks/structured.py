"""`baseload bench structured`: does a server keep its answers to JSON schemas, and what does that cost in speed?

Every schema is asked for twice, greedily and sampled. An answer counts as complete if it ended by itself within its tokens,
and as valid if it then is JSON that the schema takes. Speed is that of long texts: free, and as a string of a schema, in turns.
"""

from __future__ import annotations

import asyncio
import json as json_module
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import jsonschema
import typer
import uvloop
from referencing import Registry
from rich.console import Console

from .command import run_command
from .load_client import Target
from .random_schemas import Schema, random_schema
from .stats import percentile

REAL = Path(__file__).with_name("schemas.jsonl")
STORY: Schema = {
    "type": "object", "properties": {"story": {"type": "string", "minLength": 4000}}, "required": ["story"],
    "additionalProperties": False,
}  # fmt: skip


@dataclass
class Tally:
    """What became of the answers."""

    asked: int = 0
    refused: int = 0  # 400: the schema is one that the server does not take
    complete: int = 0
    cut: int = 0  # not at an end when its tokens were
    invalid: int = 0
    failed: int = 0
    reasons: dict[str, int] = field(default_factory=dict)  # of refusals and failures
    examples: list[dict[str, Any]] = field(default_factory=list)  # of answers that were cut, invalid or failed

    def lines(self) -> list[str]:
        """For people."""
        taken = self.asked - self.refused
        share = f"{100 * self.complete / taken:.2f}%" if taken else "-"
        head = (
            f"{self.asked} answers: {self.refused} refused (400), {self.complete} complete and valid ({share} of those taken)"
        )
        return [f"{head}, {self.cut} cut, {self.invalid} invalid, {self.failed} failed", *self._why()]

    def _why(self) -> list[str]:
        return [f"  {n:5d}  {why}" for why, n in sorted(self.reasons.items(), key=lambda item: -item[1])[:12]]

    def because(self, why: str) -> None:
        """Count a refusal's or a failure's reason."""
        self.reasons[why] = self.reasons.get(why, 0) + 1


async def ask(
    session: aiohttp.ClientSession, target: Target, text: str, schema: Schema | None, **fields: Any
) -> tuple[int, Any]:
    """(status, body) of one answer, not streamed."""
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    wanted = {"response_format": form} if schema is not None else {}
    body = {"model": target.model, "messages": [{"role": "user", "content": text}], **wanted, **fields}
    async with session.post(f"{target.base_url}/chat/completions", json=body) as response:
        return response.status, await response.json(content_type=None)


def judge(tally: Tally, schema: Schema, status: int, body: Any) -> None:
    """Count one answer."""
    tally.asked += 1
    if status == 400:
        tally.refused += 1
        tally.because(str(body.get("error", {}).get("message"))[:110])
        return
    choice = body["choices"][0] if status == 200 else {}
    text, ended = (choice.get("message") or {}).get("content") or "", choice.get("finish_reason")
    if status != 200:
        tally.failed += 1
        tally.because(f"{status} {str(body)[:90]}")
    elif ended != "stop":
        tally.cut += 1
    elif _is_valid(text, schema):
        tally.complete += 1
        return
    else:
        tally.invalid += 1
    tally.examples.append({"schema": schema, "status": status, "finish_reason": ended, "text": text[:500]})


def _is_valid(text: str, schema: Schema) -> bool:
    try:
        jsonschema.Draft202012Validator(schema, registry=Registry()).validate(json_module.loads(text))
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


async def tried(target: Target, schemas: Sequence[Schema], clients: int, max_tokens: int) -> dict[str, Tally]:
    """All `schemas`, greedily and sampled."""
    tallies = {"greedy": Tally(), "sampled": Tally()}
    work = iter([(name, n, schema) for n, schema in enumerate(schemas) for name in tallies])
    async with target.session() as session:

        async def client() -> None:
            for name, n, schema in work:
                sampling = {"temperature": 0} if name == "greedy" else {"temperature": 1, "seed": n}
                text = f"Give me example {n} of the JSON, please."
                judge(tallies[name], schema, *await ask(session, target, text, schema, max_tokens=max_tokens, **sampling))

        await asyncio.gather(*(client() for _ in range(clients)))
    return tallies


async def speeds(target: Target, clients: int, rounds: int, temperature: float, max_tokens: int) -> list[tuple[float, float]]:
    """Tokens a second of `clients` answers at once, (free, kept to a schema), for each round."""
    found: list[tuple[float, float]] = []
    async with target.session() as session:

        async def rate(schema: Schema | None, round_: int) -> float:
            fields = {"max_tokens": max_tokens, "temperature": temperature} | ({"ignore_eos": True} if schema is None else {})
            begun = time.perf_counter()
            made = await asyncio.gather(
                *(
                    ask(session, target, f"Tell me a long story, number {round_}.{i}.", schema, seed=i, **fields)
                    for i in range(clients)
                )
            )
            return sum(body["usage"]["completion_tokens"] for _, body in made) / (time.perf_counter() - begun)

        await rate(STORY, -1)  # the server's tables of tokens are made once
        for n in range(rounds):
            pair = [(kept, await rate(STORY if kept else None, n)) for kept in ((False, True) if n % 2 else (True, False))]
            by_kind = dict(pair)
            found.append((by_kind[False], by_kind[True]))
    return found


def structured(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="The model's name on that server.")] = "local",
    url: Annotated[str, typer.Option(help="The server.")] = "http://127.0.0.1:8787",
    schemas: Annotated[int, typer.Option(min=0, help="How many random schemas.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the first.")] = 0,
    clients: Annotated[int, typer.Option(min=1, help="How many answers at once.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens for each answer.")] = 400,
    rounds: Annotated[int, typer.Option(min=0, help="Pairs of speed measurements.")] = 4,
    temperature: Annotated[float, typer.Option(min=0, help="Of the speed measurements.")] = 0.0,
    api_key_env: Annotated[str, typer.Option(help="Variable that holds the server's key.")] = "BASELOAD_API_KEY",
    json: Annotated[Path | None, typer.Option(help="Write the report as JSON.")] = None,
) -> None:
    """Ask for answers by JSON schemas: how many are whole and valid, and how much slower they come."""
    base = url.rstrip("/")
    key = os.environ.get(api_key_env, "")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    target = Target(base if base.endswith("/v1") else f"{base}/v1", model, headers=headers)
    real = [json_module.loads(line)["schema"] for line in REAL.read_text("utf-8").splitlines()]
    asked = [*real, *(random_schema(seed + n) for n in range(schemas))]

    async def everything() -> tuple[dict[str, Tally], list[tuple[float, float]]]:
        return await tried(target, asked, clients, max_tokens), await speeds(target, clients, rounds, temperature, 256)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        tallies, pairs = runner.run(everything())
    console = Console(highlight=False, markup=False, width=200)
    for name, tally in tallies.items():
        console.print(f"{name}: " + "\n".join(tally.lines()))
    losses = [1 - kept / free for free, kept in pairs]
    for free, kept in pairs:
        console.print(f"{clients} streams: {free:.0f} tokens/s free, {kept:.0f} by a schema ({kept / free:.3f}x)")
    if losses:
        console.print(f"slower by {100 * percentile(sorted(losses), 50):.1f}% (median of {rounds})")
    if json:
        report = {"schema": "baseload.bench.structured/1", "command": context.obj, "tokens_per_s": pairs}
        json.write_text(json_module.dumps(report | {name: asdict(t) for name, t in tallies.items()}, indent=1), "utf-8")
    if any(tally.invalid or tally.failed for tally in tallies.values()):
        raise typer.Exit(1)


def main(words: Sequence[str] | None = None) -> int:
    """See run_command."""
    return run_command(structured, "structured", words)
