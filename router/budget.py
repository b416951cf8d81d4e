"""A request's budget: what suppliers may ask for it, all tries together, is never passed.

A call goes out only if its worst case fits: every byte of the prompt a token (no tokenizer makes more), and an answer as long
as it may get, which is cut to what is left.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson

from ..wire.chat import ChatRequest, Usage
from ..wire.errors import Forbidden
from .cost import retail_usd
from .policy import Denied

PER_MESSAGE = 16  # tokens that a template may put around one
SHORTEST = 256  # tokens of an answer that is worth its prompt, where the client asks for no fewer
FIELDS = {"openai_chat": "max_completion_tokens", "openai_responses": "max_output_tokens", "anthropic_messages": "max_tokens"}
Price = Callable[[str, str, Usage], float | None]


def within(
    request: ChatRequest, provider: str, model: str, left_usd: float | None, price: Price = retail_usd
) -> ChatRequest | Denied:
    """`request` with an answer no longer than `left_usd` (None: any amount) pays for at worst, or why it cannot be asked."""
    if left_usd is None:
        return request
    asked = price(provider, model, Usage(_most_tokens(request), 0))
    per_token = price(provider, model, Usage(0, 1_000_000))
    if asked is None or per_token is None:
        return Denied("budget", f"no price is known of {provider}/{model}, so it cannot be kept within a budget")
    affordable = int((left_usd - asked) / (per_token / 1e6)) if per_token else 1 << 30
    affordable //= request.sampling.n
    wanted = request.sampling.max_tokens
    if affordable < min(wanted or SHORTEST, SHORTEST):
        return Denied("budget", f"at worst it would cost more than the {left_usd:.6f} US dollars that are left", Forbidden)
    return request if wanted is not None and wanted <= affordable else _cut(request, affordable)


def worst_usd(request: ChatRequest, provider: str, model: str, price: Price = retail_usd) -> float:
    """What `request`, made by `within`, may cost at most; 0 without a known price."""
    most = Usage(_most_tokens(request), (request.sampling.max_tokens or 0) * request.sampling.n)
    return price(provider, model, most) or 0.0


def _most_tokens(request: ChatRequest) -> int:
    """No tokenizer makes more of the prompt."""
    texts = sum(len(str(b).encode("utf-8", "replace")) for m in request.messages for b in m.content)
    tools = sum(len(orjson.dumps({"n": t.name, "d": t.description, "p": dict(t.parameters)})) for t in request.tools)
    return texts + tools + PER_MESSAGE * (len(request.messages) + 2)


def _cut(request: ChatRequest, most: int) -> ChatRequest:
    """The same with an answer of at most `most` tokens, in its body too, which goes to suppliers of its protocol as it is."""
    sampling = replace(request.sampling, max_tokens=most)
    if request.protocol not in FIELDS:
        return replace(request, sampling=sampling, protocol="neutral", body={})
    kept: dict[str, Any] = {k: v for k, v in request.body.items() if k not in (*FIELDS.values(), "max_tokens")}
    return replace(request, sampling=sampling, body={**kept, FIELDS[request.protocol]: most})
