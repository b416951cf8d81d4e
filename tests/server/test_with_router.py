"""The routes over the real router and the real ledger; only the model is scripted."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import httpx2
import pytest

from baseload.ledger.ledger import Ledger
from baseload.router.calibrate import Drift
from baseload.router.policy import Policy
from baseload.router.router import Router
from baseload.server.services import Services
from baseload.wire.backend import ModelInfo
from baseload.wire.chat import ChatRequest, Event, Finish, TextDelta, Usage


class Echo:
    """A backend that says the last message back."""

    models = (ModelInfo("tiny", 4096),)

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        text = request.messages[-1].text if request.messages else str(request.prompt)
        if text == "wait":
            await asyncio.sleep(60)
        yield TextDelta(text, tokens=1)
        yield Usage(4, 1, 2)
        yield Finish("stop")

    def count_tokens(self, request: ChatRequest) -> int | None:
        return 4


@pytest.fixture
def house(serve, tmp_path: Path) -> Iterator[httpx2.Client]:
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.db")
    running = serve(started=False)
    running.app.state.life.start(Services(Router([Echo()], {}, Policy(), ledger), ledger))
    with httpx2.Client(base_url=running.url, timeout=20) as client:
        yield client
    running.stop()
    ledger.close()


def ask(text: str, **more: object) -> dict[str, object]:
    return {"model": "local", "messages": [{"role": "user", "content": text}]} | more


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_stands_in_the_ledger_when_it_has_ended(house, stream):
    answer = house.post("/v1/chat/completions", json=ask("hello", stream=stream))
    assert "hello" in answer.text
    assert answer.headers["x-baseload-route"] == "tiny"
    page = house.get(f"/v1/requests/{answer.headers['x-baseload-request-id']}").json()
    assert page["status"] == "done"
    assert [(a["prompt_tokens"], a["completion_tokens"], a["cached_tokens"]) for a in page["attempts"]] == [(4, 1, 2)]
    assert "hello" not in str(page)


def test_each_prompt_is_a_request_of_its_own(house):
    answer = house.post("/v1/completions", json={"model": "local", "prompt": ["a", "b"]})
    assert [c["text"] for c in answer.json()["choices"]] == ["a", "b"]
    assert (answer.headers["x-baseload-attempts"], float(answer.headers["x-baseload-cost-usd"])) == ("2", 0)
    first = answer.headers["x-baseload-request-id"]
    assert {house.get(f"/v1/requests/{name}").status_code for name in (first, f"{first}.1")} == {200}


def test_a_client_that_leaves_is_written_down_as_cancelled(house):
    with pytest.raises(httpx2.TimeoutException):
        house.post("/v1/chat/completions", json=ask("wait"), timeout=0.5)
    text = ""
    for _ in range(100):
        text = house.get("/metrics").text
        if 'finished_reason="abort"' in text:
            break
    assert 'finished_reason="abort"' in text


def test_models_are_the_routers(house):
    assert [m["id"] for m in house.get("/v1/models").json()["data"]] == ["tiny", "auto", "local"]
    assert house.post("/v1/chat/completions", json=ask("x", model="nope")).status_code == 404


def test_feedback_stands_beside_the_verdicts(house):
    answer = house.post("/v1/chat/completions", json=ask("hello"))
    name = answer.headers["x-baseload-request-id"]
    said = house.post("/v1/feedback", json={"request_id": name, "accepted": False, "score": 0.25, "comment": "no hello"})
    assert said.status_code == 200 and said.json()["request_id"] == name
    [outcome] = house.get(f"/v1/requests/{name}").json()["outcomes"]
    assert (outcome["source"], outcome["passed"], outcome["score"], outcome["comment"]) == ("feedback", False, 0.25, "no hello")


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"accepted": True}, 400, "request_id"),
        ({"request_id": "req_1"}, 400, "accepted"),
        ({"request_id": "req_1", "accepted": "yes"}, 400, "accepted"),
        ({"request_id": "req_1", "score": 1.5}, 400, "score"),
        ({"request_id": "req_1", "accepted": True, "source": "rumour"}, 400, "source"),
        ({"request_id": "req_1", "accepted": True, "comment": "x" * 5000}, 400, "comment"),
        ({"request_id": "req_nobody", "accepted": True}, 404, "request_id"),
    ],
)
def test_feedback_that_is_none(house, body, status, param):
    answer = house.post("/v1/feedback", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_what_headers_say_counts_like_the_body(house):
    told = {"x-baseload-task": "mail", "x-baseload-budget-usd": "0.5", "x-baseload-data-class": "secret"}
    assert house.post("/v1/chat/completions", json=ask("hello"), headers=told).status_code == 200
    wrong = house.post("/v1/chat/completions", json=ask("hello"), headers={"x-baseload-budget-usd": "much"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "baseload.budget_usd")


def test_an_audit_is_listened_to_and_the_drift_is_a_metric(serve, tmp_path: Path):
    ledger, told, state = Ledger.open(f"sqlite:///{tmp_path}/ledger.db"), [], Drift(0.05, 0.05)
    for _ in range(4):
        state = state.after(1.0)
    running = serve(started=False)
    router = Router([Echo()], {}, Policy(), ledger)
    learns = {"audited": lambda: told.append("audit"), "drifts": lambda: {"before.npz": state}}
    running.app.state.life.start(Services(router, ledger, **learns))
    with httpx2.Client(base_url=running.url, timeout=20) as client:
        name = client.post("/v1/chat/completions", json=ask("hello")).headers["x-baseload-request-id"]
        for source, heard in (("feedback", 0), ("audit", 1)):
            said = client.post("/v1/feedback", json={"request_id": name, "accepted": False, "source": source})
            assert (said.status_code, len(told)) == (200, heard)
        page = client.get("/metrics").text
    assert 'baseload_router_audits{predictor="before.npz"} 4.0' in page
    assert f'baseload_router_threshold_open{{predictor="before.npz"}} {float(state.alarm)}' in page and state.alarm
    running.stop()
    ledger.close()
