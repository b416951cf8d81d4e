"""A router over scripted backends, and a real ledger."""

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from baseload.ledger.ledger import Ledger
from baseload.router import Policy, Router
from baseload.router.suppliers.profile import parse_profile
from baseload.wire.backend import ModelInfo
from baseload.wire.chat import ChatRequest, Event, Failure, Finish, TextDelta, Usage


class Script:
    """A backend that gives one answer after the other: a text, or a Failure, or a list of events."""

    def __init__(self, model: ModelInfo, answers: Sequence[Any]) -> None:
        self.models = (model,)
        self.answers = list(answers)
        self.asked: list[ChatRequest] = []
        self.closed = 0

    def count_tokens(self, request: ChatRequest) -> int | None:
        return sum(len(m.text) for m in request.messages) if self.models[0].local else None

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        self.asked.append(request)
        answer = self.answers.pop(0)
        events: list[Event] = answer if isinstance(answer, list) else [answer] if isinstance(answer, Failure) else _said(answer)
        try:
            for event in events:
                yield event
        finally:
            self.closed += 1


def _said(text: str) -> list[Event]:
    return [TextDelta(text, tokens=2), Usage(5, 2), Finish("stop")]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger."""
    opened = Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}")
    yield opened
    opened.close()


@pytest.fixture
def house(ledger: Ledger) -> Callable[..., tuple[Router, Script, Script]]:
    """Makes (router, local, supplier) from the answers that each will give."""

    def make(local: Sequence[Any], supplier: Sequence[Any] = (), **policy: Any) -> tuple[Router, Script, Script]:
        profile = parse_profile("acme", {"base_url": "http://127.0.0.1:1", "models": [{"id": "big", "context_length": 9000}]})
        home, away = Script(ModelInfo("small", 1000), local), Script(profile.models[0], supplier)
        given = {"allowed_suppliers": frozenset({"acme"}), "ladder": ("acme/big",)} | policy
        return Router([home], {"acme": (profile, away)}, Policy(**given), ledger), home, away

    return make
