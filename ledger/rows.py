"""The ledger's rows as frozen data: what one request asked, what each attempt at it cost, how it was judged.

Times named `ts` and `*_ts` are seconds since the epoch; `*_s` are durations in seconds. `ledger.schema` has one
table per row class with the same column names.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from typing import Any

_random = random.Random()  # seeded by the system
os.register_at_fork(after_in_child=_random.seed)


def new_id() -> str:
    """128 random bits in hexadecimal. Unique, no secret: uuid4 asks the system for each, which costs more than the row."""
    return f"{_random.getrandbits(128):032x}"


@dataclass(frozen=True)
class RequestRow:
    """One request as asked. Written at its start and again, under the same id, at its finish."""

    id: str
    ts: float
    protocol: str
    model_asked: str
    route: str = ""
    decision: dict[str, Any] = field(default_factory=dict)
    status: str = "running"  # running | done | failed | cancelled
    stream: bool = False
    finished_ts: float | None = None
    key_id: str | None = None
    error_code: str | None = None
    job: str | None = None
    task_class: str | None = None
    session: str | None = None
    data_class: str | None = None
    budget_usd: float | None = None  # what this request alone may cost


@dataclass(frozen=True)
class AttemptRow:
    """One backend's try at a request, `n` counting from 0. What is None is not known; it is never taken as 0.

    `retail_usd` is what a supplier's list price makes of it; `device_seconds` its share of the engine's steps, `input_seconds`
    the part of that which computed its prompt, `energy_joules` and `internal_usd` what that share took of the machine's energy
    and cost, each with how it is known (`*_known`: measured, declared or assumed). The digests (sha256, hexadecimal) and the
    seed are what an answer is replayed with; `tokens_digest` is of the prompt's and the answer's token ids together.
    """

    id: str
    request_id: str
    n: int
    backend: str
    model: str
    started_ts: float
    first_token_s: float | None = None
    duration_s: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    finish_reason: str | None = None
    accepted: bool = False
    retail_usd: float | None = None
    error: str | None = None
    role: str = "answer"  # answer | repair | probe | judge | shadow | vector (no words)
    device_seconds: float | None = None
    energy_joules: float | None = None
    internal_usd: float | None = None
    model_digest: str | None = None
    template_digest: str | None = None
    kernels_digest: str | None = None
    settings_digest: str | None = None
    seed: int | None = None
    tokens_digest: str | None = None
    cache_write_tokens: int = 0
    input_seconds: float | None = None
    energy_known: str | None = None
    internal_known: str | None = None


@dataclass(frozen=True)
class OutcomeRow:
    """One verdict on one attempt, by a check or by people. `passed` None: a score alone, or no verdict.

    `check` is the check's name, empty where people judged. `pending`: a review was asked for and has not come yet.
    """

    request_id: str
    attempt_id: str
    check: str
    passed: bool | None
    score: float | None = None
    evidence: str = ""
    ts: float = 0.0
    source: str = "check"  # check | feedback | review | audit
    comment: str = ""
    pending: bool = False


@dataclass(frozen=True)
class EgressRow:
    """One dial beyond this machine, allowed or refused, with the reason."""

    id: str
    ts: float
    host: str
    port: int
    purpose: str
    request_id: str | None = None
    allowed: bool = False
    reason: str = ""


@dataclass(frozen=True)
class TextRow:
    """The words of a request (its id is the request's) or of an attempt, kept only where the settings say so.

    `asked` is a request in neutral JSON, None where an attempt was asked just that; `answers` has one object for each choice:
    text, reasoning, calls, and, of a local one, its token ids.
    """

    id: str
    request_id: str
    ts: float
    asked: dict[str, Any] | None = None
    answers: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class EnergyRow:
    """What the machine drew in `seconds` from `ts` on, `busy_s` of which the engines worked; `joules` None: nobody knows.

    `idle_s` and `idle_joules` are of the stretches in it that were surely at rest. `power_valid` False: `reason` says why the
    figure is not to be relied on.
    """

    id: str
    ts: float
    seconds: float
    busy_s: float
    joules: float | None = None
    idle_s: float = 0.0
    idle_joules: float | None = None
    known: str = "none"  # measured | declared | assumed | none
    source: str = ""
    power_valid: bool = False
    reason: str = ""


Row = RequestRow | AttemptRow | OutcomeRow | EgressRow | TextRow | EnergyRow
