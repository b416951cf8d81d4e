"""The neutral language of the house: what a client asks, and the events that answer it.

Plain frozen data. Every wire protocol is parsed into a `ChatRequest` and rendered from a stream of `Event`; N protocols
and M model sources never meet. Ranges of numbers are checked by the protocol's parser, so a `ChatRequest` in hand is sound.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Role = Literal["system", "developer", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
Effort = Literal["none", "minimal", "low", "medium", "high", "max"]  # of reasoning; none: the model shall not reason
EFFORTS: tuple[Effort, ...] = get_args(Effort)  # the least first


# --------------------------------------------------------------------------------------------- what a client asks


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of text. It is tokenised with control tokens off, whatever it contains."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """An image that came inside the request (`data:` URL); addresses to fetch are refused by the parsers."""

    media_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Reasoning:
    """An earlier turn's reasoning, with the supplier's signature if it gave one."""

    text: str
    signature: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an assistant made; `arguments` is JSON text exactly as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolReference:
    """A deferred tool (see ToolSpec) that a search found: from here on the model knows it."""

    name: str


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The answer to a `ToolCall`."""

    call_id: str
    content: tuple["Text | Image | ToolReference", ...]
    is_error: bool = False


Block = Text | Image | Reasoning | ToolCall | ToolResult


@dataclass(frozen=True, slots=True)
class Message:
    """One turn."""

    role: Role
    content: tuple[Block, ...]
    name: str | None = None

    @property
    def text(self) -> str:
        """All text blocks, joined without a separator."""
        return "".join(b.text for b in self.content if isinstance(b, Text))


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A function that the model may call; `parameters` is a JSON schema.

    A function of a namespace is called `namespace__name`. A `freeform` tool takes text: here it is a function with one string,
    `input`. A `deferred` tool is not shown at the head of the prompt, but where a ToolReference to it stands.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False
    namespace: str = ""
    freeform: bool = False
    deferred: bool = False


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """How the answer must look. `schema` is set for json_schema, `pattern` for regex and (as Lark) grammar, `choices` for
    choice."""

    kind: Literal["text", "json_object", "json_schema", "regex", "grammar", "choice"] = "text"
    name: str = "output"
    schema: Mapping[str, Any] | None = None
    strict: bool = False
    pattern: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen. Defaults are OpenAI's (temperature 1); 0 temperature is greedy."""

    temperature: float = 1.0  # [0, 2]; the served model's own default applies where the client sent none
    top_p: float = 1.0  # (0, 1]
    top_k: int = 0  # 0 = off
    min_p: float = 0.0  # [0, 1]
    repetition_penalty: float = 1.0  # (0, 10], over prompt and output, multiplicative (CTRL)
    presence_penalty: float = 0.0  # [-2, 2], over output
    frequency_penalty: float = 0.0  # [-2, 2], over output
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, bias in [-100, 100])
    seed: int | None = None  # same seed, same text, whatever else is in the batch
    max_tokens: int | None = None  # None: up to the context's end
    min_tokens: int = 0  # no end-of-sequence, stop token or stop string before this many
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # None: none; k: the chosen token's and the k most likely ones'
    n: int = 1
    margins: bool = False  # the last Usage tells how sure the model was of the first choice; of local models


@dataclass(frozen=True, slots=True)
class Extras:
    """What a client tells Baseload itself, in `extra_body={"baseload": {...}}`."""

    checks: tuple[Mapping[str, Any], ...] = ()  # definitions of done, as data (router/checks.py)
    allow_suppliers: bool = True  # false: this request must stay local
    data_class: str = ""  # of what it holds; the policy says which classes may go where
    budget_usd: float | None = None  # what suppliers may ask for it, all tries together
    task: str = ""  # the kind of work, as the client calls it
    session: str = ""  # the conversation it belongs to, by a name of the client's


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One request in the neutral language.

    Exactly one of `messages` and `prompt` is set; `prompt` (text or token ids) is a plain completion without a template.
    `body` is the JSON object it came from and `protocol` the protocol's name, so that a supplier of the same protocol can
    be handed every field.
    """

    model: str
    messages: tuple[Message, ...] = ()
    prompt: str | tuple[int, ...] | None = None
    sampling: SamplingParams = SamplingParams()
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: str | Mapping[str, Any] = "auto"  # "auto" | "none" | "required" | {"name": ...}
    parallel_tool_calls: bool = True
    response_format: ResponseFormat = ResponseFormat()
    effort: Effort | None = None  # None: as the model does by itself
    stream: bool = False
    include_usage: bool = False  # a last chunk with usage
    continuous_usage: bool = False  # usage on every chunk
    echo: bool = False  # completions: the prompt's text comes first
    user: str | None = None
    tenant: str = ""  # whose it is, by the server's word: prefixes of different tenants are kept apart
    extras: Extras = Extras()
    at: float | None = None  # when it was asked, for templates that tell the time (seconds since the epoch); None: now
    protocol: str = "neutral"
    body: Mapping[str, Any] = field(default_factory=dict)


# --------------------------------------------------------------------------------------------- what answers it


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with its natural-log probability under the distribution before temperature and truncation."""

    token: str
    logprob: float
    bytes: bytes
    token_id: int = -1
    top: tuple["TokenLogprob", ...] = ()


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text of choice `index`; `tokens` says how many generated tokens it stands for."""

    text: str
    index: int = 0
    tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of the model's reasoning; `signature` comes once, from suppliers that sign it."""

    text: str
    index: int = 0
    tokens: int = 0
    signature: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """More of tool call number `call`: id and name come once, `arguments` (JSON text) in pieces."""

    call: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""
    index: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Extension:
    """What only one protocol knows; rendered to a client of the same protocol, dropped for others."""

    protocol: str
    raw: Mapping[str, Any]
    index: int = 0


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an answer of this machine can be made again with, bit for bit. Digests are sha256 in hexadecimal, None: not known
    (see runtime/receipts.py). `tokens` are each choice's ids, empty while they come; `tokens_digest` has the prompt's too."""

    model: str | None
    template: str | None
    kernels: str | None
    settings: str | None
    seed: int | None  # None: nothing was drawn
    tokens: tuple[tuple[int, ...], ...] = ()
    tokens_digest: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens so far; a later Usage replaces an earlier one. `completion_tokens` is the sum over all choices."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # of the prompt, not computed again
    reasoning_tokens: int = 0  # of the completion
    cache_write_tokens: int = 0  # of the prompt, kept for later at a price of its own
    # Of this machine, measured; None while it goes on, and of other machines. No part of what an answer says.
    device_seconds: float | None = field(default=None, compare=False)
    signals: Mapping[str, float] | None = field(default=None, compare=False)  # how sure the model was, where that was asked
    receipt: Receipt | None = field(default=None, compare=False)  # likewise
    input_seconds: float | None = field(default=None, compare=False)  # of device_seconds, what computed the prompt


@dataclass(frozen=True, slots=True)
class Finish:
    """Choice `index` has ended."""

    reason: FinishReason
    index: int = 0
    matched_stop: str | int | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """The whole stream has ended badly. `status`, `kind` and `code` are those of wire/errors.py."""

    message: str
    status: int = 500
    kind: str = "server_error"
    code: str | None = "internal_error"
    retryable: bool = False
    retry_after: float | None = None
    unanswered: bool = False  # the other side may have worked on it, and ask for that, though no end of an answer came


Event = TextDelta | ReasoningDelta | ToolCallDelta | Extension | Usage | Finish | Failure
