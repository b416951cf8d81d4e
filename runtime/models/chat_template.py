"""A model's chat template: a conversation to the text, and the token ids, that the model was trained on.

What users and tools wrote never becomes a control token. Where a text of theirs spells one, the template sees a number
in its place; in what it renders the characters are put back, and their place is known to be plain text.
"""

import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...wire.chat import ChatRequest
from ...wire.errors import BadRequest, ModelFileError
from .answer_parser import thought_marks
from .chat_messages import template_messages, template_tools
from .gguf_vocab import read_vocab
from .template_process import TemplateFailed, TemplateProcess
from .tokenizer import Span, Tokenizer, named_tokens, read_json
from .tool_dialects import Dialect, dialect_of

TOOL_USE = "tool_use"  # some models have a second template, for requests with tools
RESERVED = ("messages", "tools", "add_generation_prompt")


class ChatTemplate:
    """A chat template as the model file has it. It is never trusted: template_process.py runs it in a process of its own."""

    def __init__(
        self,
        source: object,
        bos_token: str = "",
        eos_token: str = "",
        *,
        tool_source: str | None = None,
        tokens: Mapping[str, str] | None = None,
    ) -> None:
        """`source` is the template's text; anything else, None included, is a model that answers no chats. `tool_source` is
        used instead of it for requests with tools. `tokens`: more names of tokens that templates use, as pad_token."""
        sources = {"default": source, TOOL_USE: tool_source}
        self._sources = {name: text for name, text in sources.items() if isinstance(text, str)}
        self._missing = source is None
        named = {"bos_token": bos_token, "eos_token": eos_token, **(tokens or {})}
        self._tokens = {name: token for name, token in named.items() if token}  # templates ask whether they are defined
        self._process = TemplateProcess(self._sources)

    @property
    def knows_tools(self) -> bool:
        """Whether the template shows tools to the model."""
        return TOOL_USE in self._sources or "tools" in self._sources.get("default", "")

    @property
    def dialect(self) -> Dialect:
        """How the model writes its calls."""
        return dialect_of("".join(self._sources.values()))

    def described(self) -> list[Any]:
        """All that a rendering depends on, beside the conversation and the code."""
        return [self._sources, self._tokens]

    @property
    def thought_marks(self) -> tuple[str, str] | None:
        """What the model puts around its reasoning; None: it does not reason."""
        return thought_marks("".join(self._sources.values()))

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kw: Any,
    ) -> str:
        """The conversation as text, equal to transformers' `apply_chat_template`. Raises BadRequest."""
        return self._render_at(None, messages, tools, add_generation_prompt, kw)

    def encode(self, request: ChatRequest, tokenizer: Tokenizer, *, begun: bool = True) -> list[int]:
        """The conversation as token ids, the model's turn `begun`. Raises BadRequest."""
        developer_known = any("developer" in source for source in self._sources.values())
        explained = None if self.knows_tools else self.dialect
        messages = template_messages(request, developer_known=developer_known, explained=explained)
        conversation = [messages, template_tools(request), _template_arguments(request)]
        whole, starts = _Hidden(tokenizer.control_spans), _Hidden(tokenizer.control_starts)
        text, spans = whole.put_back(self._render_all(whole.hide(conversation), begun, request.at))
        # A template that cuts and joins texts could make a control token out of parts of one: rendered again with every
        # character hidden that such a token starts with, it must write the same ones.
        careful = starts.hide(conversation)
        if starts.count > whole.count:
            careful_text, careful_spans = starts.put_back(self._render_all(careful, begun, request.at))
            if tokenizer.controls(text, spans) != tokenizer.controls(careful_text, careful_spans):
                text, spans = careful_text, careful_spans
        ids = tokenizer.encode_around(text, spans)
        if not ids:
            raise BadRequest("This model's chat template renders the conversation to nothing.", param="messages")
        return ids

    def check(self) -> None:
        """Try the template on a greeting. Raises ModelFileError where no conversation can work; a model without a template
        is sound."""
        if self._missing:
            return
        try:
            self._render([{"role": "user", "content": "Hello"}], None, True, {})
        except TemplateFailed as e:
            raise ModelFileError(f"chat template: {_line(e)}") from e
        except BadRequest as e:
            raise ModelFileError(f"chat template: {e.message}") from e

    def close(self) -> None:
        """Let the template's process go."""
        self._process.close()

    def _render_all(self, conversation: list[Any], begun: bool, now: float | None) -> str:
        messages, tools, arguments = conversation
        return self._render_at(now, messages, tools, begun, arguments)

    def _render_at(
        self,
        now: float | None,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        begin: bool,
        kw: dict[str, Any],
    ) -> str:
        try:
            return self._render(messages, tools, begin, kw, now)
        except TemplateFailed as e:
            raise BadRequest(_blame(e), param="messages") from e

    def _render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        begin: bool,
        kw: dict[str, Any],
        now: float | None = None,
    ) -> str:
        if "default" not in self._sources:
            what = "has no chat template" if self._missing else "has a chat template that is not text"
            raise BadRequest(f"This model {what}; use /v1/completions.", code="no_chat_template")
        # Absent tools are left out: to minijinja null has no length, and templates ask for it.
        given = {"tools": tools} if tools is not None else {}
        name = TOOL_USE if tools is not None and TOOL_USE in self._sources else "default"
        context = {**self._tokens, **kw, **given, "messages": messages, "add_generation_prompt": begin}
        return self._process.render(name, context, now)


def template_from_gguf(metadata: Mapping[str, Any]) -> ChatTemplate:
    """The chat template in a GGUF file's metadata. Raises ModelFileError for a broken vocabulary."""
    vocab = read_vocab(metadata)
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    tokens = {name: vocab.tokens[vocab.special_ids[key]] for name, key in names.items() if key in vocab.special_ids}
    tool_source = metadata.get(f"tokenizer.chat_template.{TOOL_USE}")
    return ChatTemplate(
        metadata.get("tokenizer.chat_template"),
        tool_source=tool_source if isinstance(tool_source, str) else None,
        tokens=tokens,
    )


def template_from_json(folder: Path) -> ChatTemplate:
    """The chat template of a Hugging Face folder: chat_template.jinja, or the one or several in tokenizer_config.json.
    Raises ModelFileError."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        found: object = path.read_text(encoding="utf-8", errors="replace")
    else:
        found = read_json(folder / "tokenizer_config.json").get("chat_template")
    named = {"default": found}
    if isinstance(found, list):
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
    tool_source = named.get(TOOL_USE)
    return ChatTemplate(
        named.get("default"),
        tool_source=tool_source if isinstance(tool_source, str) else None,
        tokens=named_tokens(folder),
    )


class _Hidden:
    """Pieces of a conversation's strings that a template doesn't see: each is replaced by a number of its own."""

    def __init__(self, find: Callable[[str], list[Span]]) -> None:
        """`find` says which pieces of a string to hide."""
        self._find = find
        self._texts: list[str] = []
        # Digits pass unchanged through whatever a template does to text: case, escapes, JSON, trimming.
        self._nonce = str(secrets.randbelow(9 * 10**19) + 10**19)

    @property
    def count(self) -> int:
        """How many pieces are hidden."""
        return len(self._texts)

    def hide(self, value: Any) -> Any:
        """`value`, JSON, with such pieces replaced in every string and key."""
        if isinstance(value, str):
            return self._hide_text(value)
        if isinstance(value, list | tuple):
            return [self.hide(item) for item in value]
        if isinstance(value, Mapping):
            return {self._hide_text(str(key)): self.hide(item) for key, item in value.items()}
        return value

    def put_back(self, text: str) -> tuple[str, list[Span]]:
        """`text` with the hidden pieces in their places again, and those places."""
        parts, spans, size, at = [], [], 0, 0
        for mark in re.finditer(rf"{self._nonce}(\d{{8}})", text) if self._texts else ():
            hidden = self._texts[int(mark[1])]
            parts += [text[at : mark.start()], hidden]
            size += mark.start() - at
            spans.append((size, size + len(hidden)))
            size += len(hidden)
            at = mark.end()
        return "".join([*parts, text[at:]]), spans

    def _hide_text(self, text: str) -> str:
        parts, at = [], 0
        for start, end in self._find(text):
            parts += [text[at:start], f"{self._nonce}{len(self._texts):08d}"]
            self._texts.append(text[start:end])
            at = end
        return "".join([*parts, text[at:]]) if parts else text


def _template_arguments(request: ChatRequest) -> dict[str, Any]:
    """What a client hands to the template itself, in vLLM's field: {"enable_thinking": false}, say."""
    given = request.body.get("chat_template_kwargs") or {}
    if not isinstance(given, Mapping) or any(name in given for name in RESERVED):
        raise BadRequest("chat_template_kwargs must be an object of the template's own names.", param="chat_template_kwargs")
    effort = request.effort
    wished = (
        {"enable_thinking": effort != "none", **({"reasoning_effort": effort} if effort != "none" else {})} if effort else {}
    )
    return {**wished, **given}


def _blame(failure: TemplateFailed) -> str:
    """What the client is told: whether its conversation or the model's template is at fault."""
    says: dict[str, Callable[[], str]] = {
        "raised": lambda: f"This model's chat template does not take the conversation: {_line(failure)}",
        "syntax": lambda: f"This model's chat template is broken ({_line(failure)}); use /v1/completions.",
        "limit": lambda: f"This model's chat template was stopped: {_line(failure)}.",
        "failed": lambda: f"This model's chat template cannot render the conversation: {_line(failure)}",
    }
    return says[failure.kind]()


def _line(failure: TemplateFailed) -> str:
    return " ".join(str(failure).split())[:200]
