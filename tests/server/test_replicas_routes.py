"""The replicas behind a model's name, as an operator sees and steers them."""

from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import httpx2
import pytest

from baseload.ledger.ledger import Ledger
from baseload.router.policy import Policy
from baseload.router.router import Router
from baseload.runtime.pool import Pool, Replica, State
from baseload.server.services import Services
from baseload.wire.backend import ModelInfo
from baseload.wire.chat import ChatRequest, Event, Finish, TextDelta, Usage


class Server:
    """Says its name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: State = "up"

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        for event in (TextDelta(self.name, tokens=1), Usage(4, 1), Finish("stop")):
            yield event

    async def probe(self) -> State | None:
        return self.state

    async def disconnect(self) -> None:
        pass


@pytest.fixture
def house(serve, tmp_path: Path) -> Iterator[httpx2.Client]:
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.db")
    pool = Pool(ModelInfo("tiny", 4096), [Replica(name, Server(name), state="up") for name in ("a:1", "b:2")])
    running = serve(started=False)
    running.app.state.life.start(Services(Router([pool], {}, Policy(), ledger), ledger, pools=[pool]))
    with httpx2.Client(base_url=running.url, timeout=20) as client:
        yield client
    running.stop()
    ledger.close()


def said(house: httpx2.Client, n: int) -> str:
    body = {"model": "tiny", "messages": [{"role": "user", "content": f"{n} " * 300}]}
    return house.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]


def test_a_drained_replica_gets_nothing_until_it_is_taken_back(house: httpx2.Client):
    assert {said(house, n) for n in range(16)} == {"a:1", "b:2"}
    told = house.post("/v1/replicas", json={"name": "a:1", "drain": True}).json()
    assert [(one["name"], one["state"]) for one in told["data"]] == [("a:1", "draining")]
    assert {said(house, n) for n in range(16)} == {"b:2"}
    assert house.get("/health").json() == {"status": "ok", "replicas": [{"model": "tiny", "up": 1, "of": 2}]}
    house.post("/v1/replicas", json={"name": "b:2", "drain": True})
    assert (house.get("/ready").status_code, house.get("/health").status_code) == (503, 200)
    house.post("/v1/replicas", json={"name": "a:1", "drain": False, "model": "tiny"})
    assert {said(house, n) for n in range(16)} == {"a:1"}
    listed = {one["name"]: one for one in house.get("/v1/replicas").json()["data"]}
    assert sum(one["answered"] for one in listed.values()) == 48 and listed["b:2"]["state"] == "draining"
    page = house.get("/metrics").text
    assert 'baseload_replica_up{model_name="tiny",replica="b:2"} 0.0' in page
    assert f'baseload_replica_answered_total{{model_name="tiny",replica="a:1"}} {listed["a:1"]["answered"]}.0' in page


@pytest.mark.parametrize(
    ("body", "status"),
    [({"name": "c:3", "drain": True}, 404), ({"name": "a:1"}, 400), ({"drain": True}, 400), ({"name": "a:1", "drain": 1}, 400)],
)
def test_a_wrong_word_is_refused(house: httpx2.Client, body: dict[str, object], status: int):
    assert house.post("/v1/replicas", json=body).status_code == status
