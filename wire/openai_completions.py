"""OpenAI's plain completions, the side that serves: https://platform.openai.com/docs/api-reference/completions.

One body may hold several prompts; each becomes a request of its own, whose choices are numbered together.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from . import fields
from .chat import ChatRequest, Event, Failure, Finish, TextDelta, TokenLogprob, Usage
from .fields import bad, integer, is_token_id, read
from .openai_chat import DONE, model_name, render_failure, render_usage
from .sse import TextChunks

PROTOCOL = "openai_completions"
DEFAULT_MAX_TOKENS = 16
MAX_PROMPTS, MAX_CHOICES = 128, 256


def parse_completion_request(body: Mapping[str, Any]) -> list[ChatRequest]:
    """One request per prompt. Raises BadRequest, naming the field and the reason."""
    if body.get("suffix"):
        raise bad("suffix", "is not supported")
    max_tokens = integer(body, "max_tokens", DEFAULT_MAX_TOKENS, 1, 1 << 31)
    echo = read(body, "echo", bool, False)
    sampling = fields.sampling(body, max_tokens, integer(body, "logprobs", None, 0, 20))
    if integer(body, "best_of", sampling.n, 1, 128) != sampling.n:
        raise bad("best_of", "must equal n")
    if echo and sampling.logprobs is not None:
        raise bad("echo", "cannot be combined with logprobs")
    include_usage, continuous = fields.stream_options(body)
    prompts = _prompts(body.get("prompt"))
    if len(prompts) * sampling.n > MAX_CHOICES:
        raise bad("n", f"times the number of prompts must be at most {MAX_CHOICES}")
    return [
        ChatRequest(
            model=model_name(body),
            prompt=prompt,
            sampling=sampling,
            tool_choice="none",
            stream=read(body, "stream", bool, False),
            include_usage=include_usage,
            continuous_usage=continuous,
            echo=echo,
            user=read(body, "user", str),
            extras=fields.extras(body),
            protocol=PROTOCOL,
            body=body,
        )
        for prompt in prompts
    ]


def _prompts(value: Any) -> list[str | tuple[int, ...]]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise bad("prompt", "must be a string, a list of token ids, or a list of these")
    if all(is_token_id(t) for t in value):
        return [tuple(value)]
    if len(value) > MAX_PROMPTS:
        raise bad("prompt", f"holds {len(value)} prompts, at most {MAX_PROMPTS} are taken")
    return [_prompt(item, f"prompt[{i}]") for i, item in enumerate(value)]


def _prompt(item: Any, at: str) -> str | tuple[int, ...]:
    if isinstance(item, str):
        return item
    if isinstance(item, list) and item and all(is_token_id(t) for t in item):
        return tuple(item)
    raise bad(at, "must be a string or a list of token ids")


class _Logprobs:
    """The older logprobs object: four parallel lists, with each token's place in the text."""

    def __init__(self) -> None:
        self._offset = 0

    def render(self, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        offsets = []
        for entry in entries:
            offsets.append(self._offset)
            self._offset += len(entry.token)
        return {
            "tokens": [e.token for e in entries],
            "token_logprobs": [max(e.logprob, -9999.0) for e in entries],
            "top_logprobs": [{t.token: max(t.logprob, -9999.0) for t in e.top} for e in entries],
            "text_offset": offsets,
        }


def render_response(request: ChatRequest, events: Sequence[Event], id: str, created: int, model: str) -> dict[str, Any]:
    """The whole answer as one object. `events` must hold no Failure."""
    usage = next((e for e in reversed(events) if isinstance(e, Usage)), Usage(0, 0))
    choices = [_choice(request, [e for e in events if getattr(e, "index", None) == i], i) for i in range(request.sampling.n)]
    head = {"id": id, "object": "text_completion", "created": created, "model": model}
    return {**head, "choices": choices, "usage": render_usage(usage)}


def _choice(request: ChatRequest, events: Sequence[Event], index: int) -> dict[str, Any]:
    deltas = [e for e in events if isinstance(e, TextDelta)]
    entries = [lp for e in deltas for lp in e.logprobs]
    logprobs = _Logprobs().render(entries) if request.sampling.logprobs is not None else None
    finish = next((e.reason for e in events if isinstance(e, Finish)), "stop")
    return {"index": index, "text": "".join(e.text for e in deltas), "logprobs": logprobs, "finish_reason": finish}


class StreamRenderer:
    """Events to chunks, as openai_chat.StreamRenderer does it."""

    def __init__(self, request: ChatRequest, id: str, created: int, model: str) -> None:
        self._request = request
        self._head = {"id": id, "object": "text_completion", "created": created, "model": model}
        self._logprobs = [_Logprobs() for _ in range(request.sampling.n)]
        self._open = request.sampling.n
        self._usage = Usage(0, 0)
        self._tokens = 0
        self._is_plain = not request.continuous_usage and request.sampling.logprobs is None
        self._plain = TextChunks(lambda index: self._chunk(index, TextChunks.MARK, None, None))

    def plain(self, event: Event) -> bytes | None:
        """See openai_chat.StreamRenderer."""
        if not self._is_plain or type(event) is not TextDelta:
            return None
        return self._plain.write(event.index, event.text)

    def events(self, event: Event) -> list[dict[str, Any] | str]:
        """The chunks that `event` brings."""
        match event:
            case Usage():
                self._usage = event
                return []
            case Failure():
                return [render_failure(event), DONE]
            case Finish():
                return [self._chunk(event.index, "", None, event.reason), *self._end()]
            case TextDelta():
                self._tokens += event.tokens
                entries = self._logprobs[event.index].render(event.logprobs) if event.logprobs else None
                return [self._chunk(event.index, event.text, entries, None)]
            case _:
                return []

    def _end(self) -> list[dict[str, Any] | str]:
        self._open -= 1
        if self._open:
            return []
        with_usage = {**self._head, "choices": [], "usage": render_usage(self._usage)}
        return [with_usage, DONE] if self._request.include_usage else [DONE]

    def _chunk(self, index: int, text: str, logprobs: dict[str, Any] | None, finish: str | None) -> dict[str, Any]:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        chunk = {**self._head, "choices": [choice]}
        if self._request.continuous_usage:
            chunk["usage"] = render_usage(Usage(self._usage.prompt_tokens, self._tokens, self._usage.cached_tokens))
        elif self._request.include_usage:
            chunk["usage"] = None
        return chunk
