"""A local backend on a fake model, and what tests ask of it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

from baseload.runtime.engine import Engine, EngineConfig
from baseload.runtime.local_backend import LocalBackend, always
from baseload.runtime.models.model_file import LoadedModel
from baseload.runtime.models.tool_dialects.hermes import HERMES
from baseload.wire.backend import Backend
from baseload.wire.chat import ChatRequest, Event, Message, SamplingParams, Text, TextDelta
from baseload.wire.errors import BadRequest

from .engine.fake_model import FakeRunner

BOS = 95


class Letters:
    """Token i is the character 33 + i; a space is BOS if it may be a control token."""

    eos_ids: tuple[int, ...] = (96,)
    vocab_size, bos_id = 97, BOS

    longest_token = 1

    def token_bytes(self, id: int, /) -> bytes:
        return bytes([33 + id]) if id < 94 else b""

    def encode(self, text: str, *, specials: bool) -> list[int]:
        return [BOS if specials and letter == " " else ord(letter) - 33 for letter in text]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        return b"".join(map(self.token_bytes, ids)).decode()


class Template:
    """The messages' texts end to end. `slow` holds it up until it is set; it notes the thread that it runs in."""

    knows_tools = True
    dialect = HERMES
    thought_marks: tuple[str, str] | None = None

    def __init__(self) -> None:
        self.slow, self.begun = threading.Event(), threading.Event()
        self.slow.set()
        self.thread = ""
        self.closed = False

    def encode(self, request: ChatRequest, tokenizer: Letters, *, begun: bool = True) -> list[int]:
        self.thread = threading.current_thread().name
        self.begun.set()
        assert self.slow.wait(20)
        if request.messages[0].text == "refuse":
            raise BadRequest("The template does not like this.", param="messages")
        if request.messages[0].text == "crash":
            raise ZeroDivisionError("a secret")
        return tokenizer.encode("".join(message.text for message in request.messages), specials=False)

    def close(self) -> None:
        self.closed = True


class House:
    """A backend on a fake model, and what it is made of."""

    def __init__(
        self, add_bos: bool = False, runner: FakeRunner | None = None, sampling: dict[str, Any] | None = None, **config: Any
    ) -> None:
        self.template, self.runner = Template(), runner or FakeRunner(context_length=100)
        settings = EngineConfig(**{"n_pages": 60, "page_size": 4, "token_budget": 32, **config})
        self.engine = Engine(self.runner, Letters(), settings)
        shape = SimpleNamespace(
            tokenizer=Letters(),
            template=self.template,
            config=SimpleNamespace(add_bos=add_bos, default_sampling=sampling or {}, decoder=SimpleNamespace(vocab=97)),
        )
        self.backend = LocalBackend(cast(LoadedModel, shape), always(self.engine), "tiny", self.engine.longest, created=7)


async def idle(engine: Engine) -> None:
    for _ in range(2000):
        if engine.stats().running + engine.stats().waiting == 0:
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it does not come to rest")


@asynccontextmanager
async def house(**options: Any) -> AsyncIterator[House]:
    """A running one; it must be idle and whole in the end."""
    made = House(**options)
    made.engine.start()
    try:
        yield made
        await idle(made.engine)
        made.engine.check_integrity()
        stats = made.engine.stats()
        assert stats.pages_free + stats.pages_cached == stats.pages_total
    finally:
        made.template.slow.set()
        made.engine.close()
        made.backend.close()


def chat(text: str = "hello", **sampling: Any) -> ChatRequest:
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 5, "ignore_eos": True, **sampling})
    return ChatRequest("tiny", messages=(Message("user", (Text(text),)),), sampling=params)


def plain(prompt: str | tuple[int, ...], echo: bool = False, **sampling: Any) -> ChatRequest:
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 5, "ignore_eos": True, **sampling})
    return ChatRequest("tiny", prompt=prompt, sampling=params, echo=echo)


async def answer(backend: Backend, request: ChatRequest) -> list[Event]:
    async def read() -> list[Event]:
        return [event async for event in backend.generate(request)]

    return await asyncio.wait_for(read(), 15)


def text(events: list[Event], index: int = 0) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta) and event.index == index)


def kinds(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]
