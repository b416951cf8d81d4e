"""Recorded workloads: when each request came, how long it was, and which of its prompt an earlier one had begun with.

Three published forms, told apart by their first line, gzipped or not:

- Azure's CSV (TIMESTAMP, ContextTokens, GeneratedTokens; github.com/Azure/AzurePublicDataset): nothing is shared.
- Mooncake's JSON lines (timestamp in ms, input_length, output_length, hash_ids; github.com/kvcache-ai/Mooncake): an id for each
  512 tokens, and the same ids for the same tokens.
- the agentic coding CSV (trace_id, agent, seq, t_s, input_tokens, output_tokens, prefix_seen_tokens; from
  github.com/callanjfox/kv-cache-tester): each request repeats so many tokens of its agent's last one.

A prompt is a row of *pieces*, (key, tokens): equal keys stand for texts of which one begins with the other.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path

MOONCAKE_BLOCK = 512  # tokens that one of its ids stands for
LONGEST = 1 << 24  # tokens: beyond this a length is a mistake

Pieces = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Recorded:
    """One request of a trace; `at_s` counts from the trace's beginning."""

    at_s: float
    output_tokens: int
    pieces: Pieces
    session: str = ""  # the agent or user, where the trace tells

    @property
    def input_tokens(self) -> int:
        return sum(n for _, n in self.pieces)


def read_trace(path: Path, limit: int | None = None, sessions: int | None = None) -> list[Recorded]:
    """The requests in order of time, from 0 s on: the first `limit`, of the first `sessions` sessions where the trace tells
    them. Raises ValueError naming file and line, or OSError."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="") as file:
        head = file.readline()
        file.seek(0)
        read, is_ordered = _reader(head, path)
        try:
            rows = _of_sessions(read(file), sessions)
            found = list(islice(rows, limit) if is_ordered else rows)
        except (KeyError, TypeError, ValueError, EOFError) as error:
            raise ValueError(f"{path}: {error}") from error
    if not found:
        raise ValueError(f"{path}: no requests")
    found.sort(key=lambda one: one.at_s)
    first = found[0].at_s
    return [replace(one, at_s=one.at_s - first) for one in found[:limit]]


def _reader(head: str, path: Path) -> tuple[Callable[[Iterable[str]], Iterator[Recorded]], bool]:
    """What reads a file with this first line, and whether its rows stand in order of time."""
    if head.startswith("{"):
        return _mooncake, True
    names = head.strip().split(",")
    if {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} <= set(names):
        return _azure, True
    if {"trace_id", "agent", "t_s", "input_tokens", "output_tokens", "prefix_seen_tokens"} <= set(names):
        return _agentic, False
    raise ValueError(f"{path}: neither Azure's columns, nor Mooncake's JSON lines, nor the agentic coding columns")


def _of_sessions(rows: Iterable[Recorded], most: int | None) -> Iterator[Recorded]:
    known: set[str] = set()
    for row in rows:
        if most is None or not row.session or row.session in known or len(known) < most:
            known.add(row.session)
            yield row


def _tokens(value: object, line: int) -> int:
    number = int(str(value))
    if not 0 <= number <= LONGEST:
        raise ValueError(f"line {line}: {number} tokens")
    return number


def _azure(file: Iterable[str]) -> Iterator[Recorded]:
    for line, row in enumerate(csv.DictReader(file), 2):
        at = datetime.fromisoformat(row["TIMESTAMP"]).timestamp()
        asked, answered = _tokens(row["ContextTokens"], line), _tokens(row["GeneratedTokens"], line)
        yield Recorded(at, answered, ((f"own/{line}", asked),))


def _mooncake(file: Iterable[str]) -> Iterator[Recorded]:
    for line, text in enumerate(file, 1):
        if not text.strip():
            continue
        row = json.loads(text)
        asked, ids = _tokens(row["input_length"], line), list(row["hash_ids"])
        if not MOONCAKE_BLOCK * (len(ids) - 1) < max(1, asked) <= MOONCAKE_BLOCK * len(ids):
            raise ValueError(f"line {line}: {len(ids)} blocks are not {asked} tokens")
        lengths = [MOONCAKE_BLOCK] * (len(ids) - 1) + [asked - MOONCAKE_BLOCK * (len(ids) - 1)]
        pieces = tuple((f"block/{key}", n) for key, n in zip(ids, lengths, strict=True))
        yield Recorded(float(row["timestamp"]) / 1000, _tokens(row["output_length"], line), pieces)


def _agentic(file: Iterable[str]) -> Iterator[Recorded]:
    last: dict[tuple[str, str], Pieces] = {}
    for line, row in enumerate(csv.DictReader(file), 2):
        agent = row["trace_id"], row["agent"]
        asked, seen = _tokens(row["input_tokens"], line), _tokens(row["prefix_seen_tokens"], line)
        kept = cut(last.get(agent, ()), min(seen, asked))
        new = asked - sum(n for _, n in kept)
        pieces = (*kept, (f"{'/'.join(agent)}/{line}", new)) if new else kept
        last[agent] = pieces
        yield Recorded(float(row["t_s"]), _tokens(row["output_tokens"], line), pieces, agent[0])


def cut(pieces: Pieces, tokens: int) -> Pieces:
    """The first `tokens` tokens of these, or all."""
    kept: list[tuple[str, int]] = []
    for key, n in pieces:
        if tokens <= 0:
            break
        kept.append((key, min(n, tokens)))
        tokens -= n
    return tuple(kept)


def shared_tokens(requests: Sequence[Recorded]) -> int:
    """How many tokens of all prompts an earlier request had begun with too: what a cache that keeps everything need not
    compute."""
    longest: dict[tuple[int, str], int] = {}  # (where the piece stands, its key) -> the longest that came there
    places: dict[tuple[int, str, int], int] = {}  # (place, key, length) -> the place after it
    shared = 0
    for request in requests:
        place = 0
        is_shared = True
        for key, n in request.pieces:
            before = longest.get((place, key), 0)
            shared += min(n, before) if is_shared else 0
            is_shared = is_shared and n <= before
            longest[place, key] = max(n, before)
            place = places.setdefault((place, key, n), len(places) + 1)
    return shared
