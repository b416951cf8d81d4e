"""What a predictor wants to know of a local answer beside its text: how sure the model was, and whether samples say the same.

Both cost something, so neither is asked for unless the predictor in use learned from it. Margins come with the answer's own
tokens. Samples are attempts of their own, made together: the engine batches them, and the prompt is in its cache already.
"""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace

from ..wire.chat import ChatRequest, Usage
from .cascade import Attempt, attempt_events
from .signals import agreement

MARGINS = frozenset({"margin_mean", "margin_least"})
AGREEMENT = "agreement"  # of the answer and its samples: signals.agreement
SAMPLES = 3
TEMPERATURE = 0.8
LONGEST = 512  # tokens of a sample


def telling(request: ChatRequest, wants: frozenset[str]) -> ChatRequest:
    """`request` to a local model, with the margins if they are wanted."""
    return replace(request, sampling=replace(request.sampling, margins=True)) if wants & MARGINS else request


async def signals_of(
    request: ChatRequest, attempt: Attempt, wants: frozenset[str], begin: Callable[[ChatRequest], Attempt]
) -> dict[str, float]:
    """Those of `wants` that are to be had of a local `attempt` at `request`; `begin` makes an attempt for a sample."""
    found = {name: value for name, value in attempt.signals.items() if name in wants}
    if AGREEMENT in wants:
        sampled = await asyncio.gather(*(_sample(_another(request, attempt, n), begin) for n in range(SAMPLES)))
        said = [text for text in sampled if text is not None]
        if said:
            found[AGREEMENT] = agreement([attempt.answers(1)[0].text, *said])
    return found


def _another(request: ChatRequest, attempt: Attempt, n: int) -> ChatRequest:
    """The same question for one more answer, warmer, and not much longer than the first was."""
    first = next((e.completion_tokens for e in reversed(attempt.events) if isinstance(e, Usage)), LONGEST)
    longest = min(2 * first + 16, LONGEST, request.sampling.max_tokens or LONGEST)
    seed = None if request.sampling.seed is None else request.sampling.seed + 1 + n
    sampling = replace(request.sampling, temperature=TEMPERATURE, n=1, seed=seed, max_tokens=longest, logprobs=None)
    return replace(request, sampling=sampling, body={**request.body, "temperature": TEMPERATURE})  # said, not the model's own


async def _sample(request: ChatRequest, begin: Callable[[ChatRequest], Attempt]) -> str | None:
    attempt = begin(request)
    try:
        async with aclosing(attempt_events(request, attempt, keep=True)) as events:
            async for _ in events:
                pass
    finally:
        attempt.over(accepted=False)
    return None if attempt.failure else attempt.answers(1)[0].text
