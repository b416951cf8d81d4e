"""A request's budget: what suppliers may ask for it, all tries together, is never passed.

A call goes out only if its worst case fits: every byte of the prompt a token (no tokenizer makes more), and an answer as long
as it may get, which is cut to what is left.
"""

import re
from collections.abc import Callable, Mapping
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
# Fields that are handed on and have prices of their own, with the values that cost nothing more; and tools that suppliers run.
PRICED_APART: dict[str, tuple[Any, ...]] = {
    "service_tier": ("default", "standard", "standard_only", "flex"), "web_search_options": (), "modalities": (["text"],),
    "audio": (), "prediction": (), "mcp_servers": (), "container": (), "background": (False,),
}  # fmt: skip
CLIENTS_TOOLS = ("function", "custom", "namespace", "local_shell", "shell", "apply_patch")  # that cost tokens alone
CLIENTS_FAMILIES = ("bash_", "text_editor_", "computer_", "memory_")  # by the first part of a dated name
FIELDS = {"openai_chat": "max_completion_tokens", "openai_responses": "max_output_tokens", "anthropic_messages": "max_tokens"}
Price = Callable[[str, str, Usage], float | None]


def within(
    request: ChatRequest, provider: str, model: str, left_usd: float | None, price: Price = retail_usd, longest: int = LONGEST
) -> ChatRequest | Denied:
    """`request` with an answer no longer than `left_usd` (None: any amount) pays for at worst, or why it cannot be asked.
    `longest`: tokens of an answer of which the client says no length."""
    if left_usd is None:
        return request
    if extra := priced_apart(request):
        return Denied("budget", f"{extra} has a price of its own, so the request cannot be kept within a budget")
    asked, with_answer = (_worst(request, answer, provider, model, price) for answer in (0, 1_000_000))
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
    return _worst(request, (request.sampling.max_tokens or 0) * request.sampling.n, provider, model, price) or 0.0


def priced_apart(request: ChatRequest) -> str:
    """What of the client's body, which a supplier of its protocol gets as it is, costs more than tokens do; "" for nothing."""
    for name, free in PRICED_APART.items():
        if request.body.get(name) not in (None, [], {}, *free):
            return f"the field {name}"
    tools = request.body.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        if isinstance(tool, dict) and (kind := _suppliers_own(request.protocol, tool)):
            return f"a tool of type {kind[:40]}"
    if request.protocol == "anthropic_messages" and re.search(rb'"ttl":"(?!5m)', orjson.dumps(request.body, default=str)):
        return "a cache that lives longer"
    return ""


def _suppliers_own(protocol: str, tool: Mapping[str, Any]) -> str:
    """What a tool is called that the supplier runs itself; "" for the client's own."""
    if protocol == "google_generate":  # a tool is named by its key there
        return next((key for key in tool if key not in ("functionDeclarations", "function_declarations")), "")
    kind = tool.get("type")
    own = not isinstance(kind, str) or kind in CLIENTS_TOOLS or kind.startswith(CLIENTS_FAMILIES)
    return "" if own else str(kind)


def _worst(request: ChatRequest, answer: int, provider: str, model: str, price: Price) -> float | None:
    """US dollars of the prompt at its dearest, written to a cache where that is asked for, and an answer of so many tokens."""
    most = most_tokens(request)
    plain = price(provider, model, Usage(most, answer))
    if plain is None or b"cache_control" not in orjson.dumps(request.body, default=str):
        return plain
    written = price(provider, model, Usage(most, answer, cache_write_tokens=most))
    return None if written is None else max(plain, written)


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
