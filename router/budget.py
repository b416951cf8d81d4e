"""A request's budget: what suppliers may ask for it, all tries together, is never passed.

A call goes out only if its worst case fits: every byte of the prompt a token (no tokenizer makes more), and an answer as long
as it may get, which is cut to what is left.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson

from ..wire.chat import Block, ChatRequest, Image, Reasoning, Text, ToolCall, ToolReference, ToolResult, Usage
from ..wire.errors import Forbidden
from .cost import retail_usd
from .policy import Denied

PER_MESSAGE = 16  # tokens that a template may put around one
PER_IMAGE = 3000  # tokens; vendors count some 260 to 1,600 for one
LONGEST = 8192  # tokens of an answer, under a budget, where the client says no length: what nearly all models can write
SHORTEST = 256  # tokens of an answer that is worth its prompt, where the client asks for no fewer
FIELDS = {"openai_chat": "max_completion_tokens", "openai_responses": "max_output_tokens", "anthropic_messages": "max_tokens"}
Price = Callable[[str, str, Usage], float | None]


def within(
    request: ChatRequest, provider: str, model: str, left_usd: float | None, price: Price = retail_usd, longest: int = LONGEST
) -> ChatRequest | Denied:
    """`request` with an answer no longer than `left_usd` (None: any amount) pays for at worst, or why it cannot be asked.
    `longest`: tokens of an answer of which the client says no length."""
    if left_usd is None:
        return request
    most = most_tokens(request)
    asked, with_answer = _dearest(most, 0, provider, model, price), _dearest(most, 1_000_000, provider, model, price)
    if asked is None or with_answer is None:
        return Denied("budget", f"no price is known of {provider}/{model}, so it cannot be kept within a budget")
    per_token = (with_answer - asked) / 1e6  # in the tier of this prompt
    affordable = int((left_usd - asked) / per_token + 1e-6) if per_token else (1 << 30 if asked <= left_usd else 0)
    affordable //= request.sampling.n
    wanted = request.sampling.max_tokens
    if affordable < min(wanted or SHORTEST, SHORTEST):
        return Denied("budget", f"at worst it would cost more than the {left_usd:.6f} US dollars that are left", Forbidden)
    if wanted is not None and wanted <= affordable and not {"max_tokens", "max_completion_tokens"} <= request.body.keys():
        return request
    return _cut(request, min(affordable, wanted or longest))


def worst_usd(request: ChatRequest, provider: str, model: str, price: Price = retail_usd) -> float:
    """What `request`, made by `within`, may cost at most; 0 without a known price."""
    answer = (request.sampling.max_tokens or 0) * request.sampling.n
    return _dearest(most_tokens(request), answer, provider, model, price) or 0.0


def _dearest(prompt: int, answer: int, provider: str, model: str, price: Price) -> float | None:
    """So many tokens at most, at worst all of the prompt's written to the supplier's cache, which some ask more for."""
    prices = [price(provider, model, Usage(prompt, answer, cache_write_tokens=written)) for written in (0, prompt)]
    known = [found for found in prices if found is not None]
    return max(known) if known else None


def most_tokens(request: ChatRequest) -> int:
    """No tokenizer makes more of the prompt: every byte is one, and an image what the dearest counts for it."""
    blocks = [b for m in request.messages for b in m.content]
    blocks += [inner for b in blocks if isinstance(b, ToolResult) for inner in b.content]
    images = sum(isinstance(b, Image) for b in blocks)
    texts = sum(len(_words(b).encode("utf-8", "replace")) for b in blocks)
    plain = len(request.prompt.encode("utf-8", "replace")) if isinstance(request.prompt, str) else len(request.prompt or ())
    schemas = [{"n": t.name, "d": t.description, "p": dict(t.parameters)} for t in request.tools]
    schemas += [dict(request.response_format.schema)] if request.response_format.schema else []
    shapes = sum(len(orjson.dumps(schema)) for schema in schemas)
    return texts + plain + shapes + images * PER_IMAGE + PER_MESSAGE * (len(request.messages) + 2)


def _words(block: Block | ToolReference) -> str:
    if isinstance(block, ToolCall):
        return block.name + block.arguments
    return block.text if isinstance(block, Text | Reasoning) else ""


def _cut(request: ChatRequest, most: int) -> ChatRequest:
    """The same with an answer of at most `most` tokens, in its body too, which goes to suppliers of its protocol as it is."""
    sampling = replace(request.sampling, max_tokens=most)
    if request.protocol not in FIELDS:
        return replace(request, sampling=sampling, protocol="neutral", body={})
    kept: dict[str, Any] = {k: v for k, v in request.body.items() if k not in (*FIELDS.values(), "max_tokens")}
    return replace(request, sampling=sampling, body={**kept, FIELDS[request.protocol]: most})
