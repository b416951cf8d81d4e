"""Whatever a supplier does, each client's stream ends once, in its protocol's own way, and an error never looks like an end."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
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

from .upstream import SPEECHES, faults, upstream

USER = [{"role": "user", "content": "hi"}]
Json = dict[str, Any]


def said(body: str) -> list[Json]:
    """The events of a stream; what is no event makes this fail."""
    lines = [line for line in body.split("\n") if line and not line.startswith((":", "event:"))]
    return [json.loads(line.removeprefix("data: ")) for line in lines if line != "data: [DONE]"]


# Each says how a stream of its protocol ended: "whole", "failed", or why that can't be told.


def chat(body: str) -> str:
    events = said(body)
    if not body.endswith("data: [DONE]\n\n") or body.count("[DONE]") != 1:
        return "no last word"
    finishes = [c["finish_reason"] for e in events for c in e.get("choices", ()) if c["finish_reason"]]
    errors = [e for e in events if "error" in e]
    return {(1, 0): "whole", (0, 1): "failed"}.get((len(finishes), len(errors)), f"{finishes} {errors}")


def responses(body: str) -> str:
    kinds = [e["type"] for e in said(body)]
    ends = [k for k in kinds if k in ("response.completed", "response.failed", "response.incomplete")]
    if len(ends) != 1 or kinds[-1] != ends[0]:
        return str(kinds)
    return "whole" if ends == ["response.completed"] else "failed"


def messages(body: str) -> str:
    kinds = [e["type"] for e in said(body)]
    ends = [k for k in kinds if k in ("message_stop", "error")]
    return {"message_stop": "whole", "error": "failed"}[kinds[-1]] if len(ends) == 1 == kinds.count(kinds[-1]) else str(kinds)


def generate(body: str) -> str:
    events = said(body)
    finishes = [c["finishReason"] for e in events for c in e.get("candidates", ()) if c.get("finishReason")]
    errors = [e for e in events if "error" in e]
    return {(1, 0): "whole", (0, 1): "failed"}.get((len(finishes), len(errors)), f"{finishes} {errors}")


def ollama(body: str) -> str:
    events = said(body)
    done, errors = [e for e in events if e.get("done")], [e for e in events if "error" in e]
    return {(1, 0): "whole", (0, 1): "failed"}.get((len(done), len(errors)), f"{done} {errors}")


MODEL = {"model": "acme/big", "messages": USER, "stream": True}
CLIENTS: dict[str, tuple[str, Json, Callable[[str], str]]] = {
    "chat": ("/v1/chat/completions", MODEL, chat),
    "responses": ("/v1/responses", {"model": "acme/big", "input": "hi", "stream": True}, responses),
    "messages": ("/v1/messages", MODEL | {"max_tokens": 99}, messages),
    "generate": ("/v1beta/models/acme/big:streamGenerateContent", {"contents": [{"parts": [{"text": "hi"}]}]}, generate),
    "ollama": ("/api/chat", MODEL, ollama),
}


class Local:
    """The local model, which nobody asks here."""

    models = (ModelInfo("tiny", 100),)

    def generate(self, request: ChatRequest) -> Any:
        raise AssertionError

    def count_tokens(self, request: ChatRequest) -> int:
        return 1


async def post(app: Any, path: str, body: Json) -> tuple[int, str, str]:
    """(status, text, id) of one request to the application, without a network."""
    data = json.dumps(body).encode()
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
             "path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers, "client": ("127.0.0.1", 1),
             "server": ("127.0.0.1", 8787)}  # fmt: skip
    came = iter([{"type": "http.request", "body": data, "more_body": False}])
    sent: list[Json] = []

    async def receive() -> Json:
        return next(came, None) or await asyncio.Event().wait()  # type: ignore[return-value]

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    text = b"".join(m.get("body", b"") for m in sent[1:]).decode()
    return sent[0]["status"], text, dict(sent[0]["headers"])[b"x-baseload-request-id"].decode()


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    made = Ledger.open(f"sqlite:///{tmp_path}/ledger.db")
    yield made
    made.close()


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
