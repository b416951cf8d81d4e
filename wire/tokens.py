"""Text to token ids and back, as vLLM serves it: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import openai_chat
from .chat import ChatRequest
from .fields import bad, is_token_id, read
from .openai_chat import model_name

MAX_TOKENS = 1 << 20


@dataclass(frozen=True, slots=True)
class TokenizeRequest:
    """A prompt, or a conversation, to be shown as the model reads it."""

    chat: ChatRequest
    bare: bool  # a plain prompt without its beginning-of-sequence token
    begun: bool  # a conversation with the head of the model's turn
    strings: bool  # each token's text too


@dataclass(frozen=True, slots=True)
class DetokenizeRequest:
    """Token ids to be shown as text."""

    model: str
    tokens: tuple[int, ...]


def parse_tokenize(body: Mapping[str, Any]) -> TokenizeRequest:
    """The request in a JSON object: it has a `prompt` or `messages`. Raises BadRequest, naming the field."""
    begun, strings = read(body, "add_generation_prompt", bool, True), read(body, "return_token_strs", bool, False)
    if "messages" in body:
        if "prompt" in body:
            raise bad("prompt", "cannot stand beside messages")
        return TokenizeRequest(openai_chat.parse_request(body), False, begun, strings)
    prompt = read(body, "prompt", str)
    if prompt is None:
        raise bad("prompt", "must be a string, or messages a list")
    chat = ChatRequest(model_name(body), prompt=prompt, body=body)
    return TokenizeRequest(chat, not read(body, "add_special_tokens", bool, True), begun, strings)


def render_tokenize(ids: Sequence[int], longest: int, strings: Sequence[str] | None) -> dict[str, Any]:
    """The answer; `longest` is the longest sequence that the model takes, in tokens."""
    return {"count": len(ids), "max_model_len": longest, "tokens": list(ids), "token_strs": strings}


def parse_detokenize(body: Mapping[str, Any]) -> DetokenizeRequest:
    """The request in a JSON object. Raises BadRequest, naming the field."""
    tokens = body.get("tokens")
    if not isinstance(tokens, list) or not all(is_token_id(t) for t in tokens):
        raise bad("tokens", "must be a list of token ids")
    if len(tokens) > MAX_TOKENS:
        raise bad("tokens", f"has {len(tokens)} ids, at most {MAX_TOKENS} are taken")
    return DetokenizeRequest(model_name(body), tuple(tokens))


def render_detokenize(text: str) -> dict[str, Any]:
    """The answer."""
    return {"prompt": text}
