"""Whatever a supplier does, each client's stream ends once, in its protocol's own way, and an error never looks like an end."""

import asyncio
import json
from typing import Any

import pytest

from baseload.ledger.ledger import Ledger
from baseload.router.policy import Policy
from baseload.router.router import Router
from baseload.router.suppliers.profile import parse_profile
from baseload.router.suppliers.resilience import Resilient
from baseload.server.app import create_app
from baseload.server.services import Services
from baseload.server.settings import Settings
from baseload.wire.backend import ModelInfo
from baseload.wire.chat import ChatRequest

from .clients import CLIENTS, post
from .upstream import SPEECHES, faults, upstream


class Local:
    """The local model, which nobody asks here."""

    models = (ModelInfo("tiny", 100),)

    def generate(self, request: ChatRequest) -> Any:
        raise AssertionError

    def count_tokens(self, request: ChatRequest) -> int:
        return 1


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("protocol", SPEECHES)
async def test_64_streams_over_all_faults(ledger: Ledger, protocol: str, client: str):
    path, body, how = CLIENTS[client]
    of = SPEECHES[protocol]
    scripts = [(of.good, "close"), *faults(of).values()]
    asked = [scripts[i % len(scripts)] for i in range(64)]
    # Time enough that a good answer is one on a busy machine, too.
    async with upstream(*asked, protocol=protocol, patience_s=1.0) as (_, backend):
        profile = parse_profile("acme", {"base_url": "http://127.0.0.1", "models": [{"id": "big", "context_length": 9000}]})
        router = Router([Local()], {"acme": (profile, Unbroken(backend))}, Policy(False, frozenset({"acme"})), ledger)
        app = create_app(Services(router, ledger), Settings(), env={})
        async with asyncio.timeout(40):
            answers = await asyncio.gather(*[post(app, path, body) for _ in range(64)])
    outcomes = [how(text) if status == 200 else "refused" for status, text, _ in answers]
    # What fails early gets a status of its own, what fails later an error in the stream: which of them is a matter of load.
    assert {"whole"} < set(outcomes) <= {"whole", "failed", "refused"}, outcomes
    for status, text, _ in answers:
        assert status == 200 or (status in (429, 502, 503) and json.loads(text))
    ledger.flush()
    rows = [ledger.request(request_id) for _, _, request_id in answers]
    assert len(rows) == 64 and all(row and row["status"] in ("done", "failed") for row in rows)
    assert outcomes.count("whole") == sum(row["status"] == "done" for row in rows if row)


class Unbroken(Resilient):
    """Without waiting between tries, and with breakers that never open: every stream is to meet its own fault."""

    def __init__(self, backend: Any) -> None:
        async def at_once(seconds: float) -> None:
            await asyncio.sleep(0)

        super().__init__(backend, "acme", sleep=at_once)

    def breaker(self, model: str) -> Any:
        made = super().breaker(model)
        made.failures = -(1 << 30)
        return made
