"""OpenAI's plain completions, the side that calls: for servers of ours that get a prompt as it is, text or token ids.

No supplier is asked this way, so it does not stand among protocols.py's names.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from .chat import ChatRequest, Event, TextDelta, TokenLogprob
from .openai_chat import StreamParser as ChatParser
from .openai_chat import headers
from .openai_completions import PROTOCOL
from .protocols import WireProtocol


def path(model: str) -> str:
    """After the base URL."""
    return "/completions"


def render_request(request: ChatRequest, model: str, drop: Sequence[str] = ()) -> dict[str, Any]:
    """The request as a body, streaming with usage; see openai_chat.render_request. Of a body with several prompts it holds the
    request's own."""
    body = dict(request.body) if request.protocol == PROTOCOL else _meaning(request)
    for name in ("baseload", "best_of", *drop):
        body.pop(name, None)
    prompt = list(request.prompt) if isinstance(request.prompt, tuple) else request.prompt
    return body | {"model": model, "prompt": prompt, "stream": True, "stream_options": {"include_usage": True}}


def _meaning(request: ChatRequest) -> dict[str, Any]:
    p = request.sampling
    body: dict[str, Any] = {"temperature": p.temperature, "top_p": p.top_p, "n": p.n, "echo": request.echo}
    optional = {
        "max_tokens": p.max_tokens,
        "top_k": p.top_k,
        "min_p": p.min_p,
        "stop": list(p.stop),
        "stop_token_ids": list(p.stop_token_ids),
        "presence_penalty": p.presence_penalty,
        "frequency_penalty": p.frequency_penalty,
        "logprobs": p.logprobs,
    }
    said = {name: value for name, value in optional.items() if value is not None and value != [] and value != 0}
    return body | said | ({} if p.seed is None else {"seed": p.seed})  # a seed of 0 is one


class StreamParser(ChatParser):
    """A completion's chunks differ from a chat's in where the words and their probabilities stand."""

    def _choice(self, choice: Mapping[str, Any]) -> list[Event]:
        text, entries = choice.get("text") or "", _entries(choice.get("logprobs"))
        if not isinstance(text, str):
            raise TypeError("text")
        index = choice.get("index", 0)
        words: list[Event] = [TextDelta(text, index, tokens=1, logprobs=entries)] if text or entries else []
        finished = index in self.finishes
        rest = super()._choice({**choice, "delta": {}, "logprobs": None})
        return [] if finished else [*words, *rest]


def _entries(found: Any) -> tuple[TokenLogprob, ...]:
    """The older logprobs object, of parallel lists. The first token of a prompt that is echoed has no probability."""
    if not found:
        return ()
    tops = found.get("top_logprobs") or [None] * len(found["tokens"])
    rows = zip(found["tokens"], found["token_logprobs"], tops, strict=True)
    return tuple(
        TokenLogprob(str(token), float(logprob), str(token).encode(), top=_top(top))
        for token, logprob, top in rows
        if logprob is not None
    )


def _top(top: Mapping[str, Any] | None) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(token, float(logprob), token.encode()) for token, logprob in (top or {}).items())


def parse_response(body: Mapping[str, Any], n: int) -> list[Event]:
    """The events of an answer that came whole."""
    parser = StreamParser(n)
    return [*parser.chunk(body), *parser.close()]


COMPLETIONS = WireProtocol(path, headers, render_request, StreamParser, parse_response)
