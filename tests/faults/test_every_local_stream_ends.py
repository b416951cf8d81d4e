"""Whatever happens to the engine, each client's stream ends once, in its protocol's own way; who comes after is served."""

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from baseload.ledger.ledger import Ledger
from baseload.router.policy import Policy
from baseload.router.router import Router
from baseload.server.app import create_app
from baseload.server.services import Services
from baseload.server.settings import Settings

from ..runtime.engine.fake_model import FakeRunner
from ..runtime.local_house import House
from .clients import CLIENTS, Json, post

N = 16
BLOCKED_S = 1.0  # longer than the watchdog waits


class Fault:
    """What goes wrong in the model's steps, and how its house is built."""

    config: ClassVar[Json] = {}
    poison: ClassVar[int | None] = None
    wrong: ClassVar[set[str]] = {"failed", "refused"}  # how streams may end that it hits

    def before_run(self, batch: Any) -> None:
        """Called before each step; may raise or block."""

    def body(self, i: int, body: Json) -> Json:
        """The i-th request."""
        return body


class StepRaises(Fault):
    """An unknown exception amid the answers: it ends the batch that it meets."""

    def __init__(self) -> None:
        self.steps = 0

    def before_run(self, batch: Any) -> None:
        self.steps += 1
        if self.steps == 12:
            raise RuntimeError("in /home/x.py")


class StepHangs(Fault):
    """A step that takes too long: its requests end, and a new thread takes over."""

    config: ClassVar[Json] = {"watchdog_s": 0.3}

    def __init__(self) -> None:
        self.steps = 0
        self.over = threading.Event()

    def before_run(self, batch: Any) -> None:
        self.steps += 1
        if self.steps == 12:
            self.over.wait(BLOCKED_S)


class NoRoomInTheQueue(Fault):
    """More than may wait."""

    config: ClassVar[Json] = {"max_batch": 2, "max_queue": 2}
    wrong: ClassVar[set[str]] = {"refused"}


class FewPages(Fault):
    """Less memory than all need at once: who is pushed out runs again."""

    config: ClassVar[Json] = {"n_pages": 12, "page_size": 4, "max_batch": 8}
    wrong: ClassVar[set[str]] = set()


class BadNumbers(Fault):
    """Every other prompt makes the model say NaN."""

    poison: ClassVar[int | None] = ord("~") - 33

    def body(self, i: int, body: Json) -> Json:
        return json.loads(json.dumps(body).replace('"hi"', '"h~"')) if i % 2 else body


FAULTS: tuple[Callable[[], Fault], ...] = (StepRaises, StepHangs, NoRoomInTheQueue, FewPages, BadNumbers)
LIMITS = {
    "chat": {"max_tokens": 30}, "responses": {"max_output_tokens": 30}, "messages": {"max_tokens": 30},
    "generate": {"generationConfig": {"maxOutputTokens": 30}}, "ollama": {"options": {"num_predict": 30}},
}  # fmt: skip


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("fault", FAULTS)
async def test_16_streams_over_an_engines_faults(ledger: Ledger, fault: Callable[[], Fault], client: str):
    path, body, how = CLIENTS[client]
    path, body = path.replace("acme/big", "tiny"), {**body, **({"model": "tiny"} if "model" in body else {}), **LIMITS[client]}
    now = fault()
    runner = FakeRunner(context_length=100, before_run=now.before_run, poison=now.poison)
    house = House(runner=runner, **now.config)
    house.engine.start()
    try:
        app = create_app(Services(Router([house.backend], {}, Policy(), ledger), ledger), Settings(), env={})
        async with asyncio.timeout(30):
            answers = await asyncio.gather(*[post(app, path, now.body(i, body)) for i in range(N)])
            while (await post(app, path, body))[0] == 503:  # until a new thread has taken over
                await asyncio.sleep(0.05)
            assert (await post(app, path, body))[0] == 200
        outcomes = [how(text) if status == 200 else "refused" for status, text, _ in answers]
        assert set(outcomes) <= {"whole", *now.wrong} and bool(now.wrong) == any(o != "whole" for o in outcomes), outcomes
        assert all(status == 200 or (status in (429, 500, 503) and json.loads(text)) for status, text, _ in answers)
        assert not any("/home/x.py" in text for _, text, _ in answers)
        ledger.flush()
        rows = [ledger.request(request_id) for _, _, request_id in answers]
        assert outcomes.count("whole") == sum(bool(row) and row["status"] == "done" for row in rows)
    finally:
        house.engine.close()
        house.backend.close()
