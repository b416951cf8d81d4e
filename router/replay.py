"""An answer of this machine made again from what the books say of it, and compared bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..wire.backend import Backend
from ..wire.chat import ChatRequest, Failure, Receipt, Usage

Verdict = Literal["same", "different", "refused", "unknown"]
DIGESTS = ("model", "template", "kernels", "settings")
Ids = Sequence[int]
Changes = Mapping[str, tuple[str | None, str | None]]  # name -> (then, now)


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of it. `changed`: the digests that differ; `choice` and `at`: where the first other token stands, and
    what it was `then` and is `now` (ids; None: the answer had ended there)."""

    attempt_id: str
    verdict: Verdict
    why: str
    changed: Changes = field(default_factory=dict)
    tokens: int = 0
    choice: int | None = None
    at: int | None = None
    then: int | None = None
    now: int | None = None


def unreplayable(attempt: Mapping[str, Any]) -> str:
    """Why this attempt (the columns of AttemptRow) can't be made again; empty where it can."""
    if attempt["backend"] != "local":
        return f"it was made by {attempt['backend']}, and what a supplier computes is not ours to repeat"
    if attempt["tokens_digest"] is None:
        return f"it did not come to its end ({attempt['error']})" if attempt["error"] else "the books have no receipt of it"
    return ""


def changed(attempt: Mapping[str, Any], found: Receipt, names: Sequence[str] = DIGESTS) -> Changes:
    """The digests that are not those of the books."""
    pairs = {name: (attempt[f"{name}_digest"], getattr(found, name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def refusal(attempt: Mapping[str, Any], differing: Changes) -> Replay:
    """It is not run: what it depends on is not what it was."""
    why = "; ".join(
        f"the {name} digest was {then or 'not known'} and is {now or 'not known'}" for name, (then, now) in differing.items()
    )
    return Replay(attempt["id"], "refused", why, dict(differing))


async def replay(attempt: Mapping[str, Any], asked: ChatRequest, recorded: Sequence[Ids] | None, backend: Backend) -> Replay:
    """Make `attempt` (the columns of AttemptRow) again: `backend` is asked what was `asked`. `recorded`: the answer's ids,
    choice by choice, where they were kept; without them a difference is found but not placed."""
    sampling = replace(asked.sampling, seed=attempt["seed"])
    request = replace(asked, model=backend.models[0].id, sampling=sampling, at=attempt["started_ts"])
    last: Usage | None = None
    async with aclosing(backend.generate(request)) as events:
        async for event in events:
            if isinstance(event, Failure):
                return Replay(attempt["id"], "different", f"it fails now: {event.message}")
            if not isinstance(event, Usage) or event.receipt is None:
                continue
            if last is None and (differing := changed(attempt, event.receipt)):
                return refusal(attempt, differing)
            last = event
    if last is None or last.receipt is None:
        return Replay(attempt["id"], "different", "it gives no answer now")
    if last.receipt.tokens_digest == attempt["tokens_digest"]:
        return Replay(attempt["id"], "same", "bit for bit the same", tokens=last.completion_tokens)
    if last.prompt_tokens != attempt["prompt_tokens"]:
        why = f"the prompt has {last.prompt_tokens} tokens, and had {attempt['prompt_tokens']}: this is not what was asked"
        return Replay(attempt["id"], "different", why, tokens=last.completion_tokens)
    return _placed(attempt, last.receipt.tokens, recorded, last.completion_tokens)


def _placed(attempt: Mapping[str, Any], now: Sequence[Ids], then: Sequence[Ids] | None, tokens: int) -> Replay:
    if then is None:
        why = "the tokens are not those of the books, which keep no text to show where"
        return Replay(attempt["id"], "different", why, tokens=tokens)
    for choice, (old, new) in enumerate(zip(then, now, strict=False)):
        at = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
        if at < max(len(old), len(new)):
            pair = [ids[at] if at < len(ids) else None for ids in (old, new)]
            why = f"token {at + 1} of choice {choice} differs"
            return Replay(attempt["id"], "different", why, {}, tokens, choice, at, *pair)
    why = "the answer is the same, but the prompt's tokens are others: this is not what was asked"
    return Replay(attempt["id"], "different", why, tokens=tokens)
