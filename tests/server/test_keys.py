"""Virtual keys at the door: who gets in, what each may do, and how each protocol's clients hear that they may not."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import event

from baseload.ledger import Ledger, budgets, keys
from baseload.ledger.purse import Purse
from baseload.router import Policy, Router
from baseload.router.suppliers.profile import parse_profile
from baseload.server.keyring import Keyring
from baseload.server.services import Services
from baseload.wire.backend import ModelInfo
from baseload.wire.chat import ChatRequest, Event, Finish, TextDelta, Usage
from baseload.wire.errors import Unavailable

AWAY = "acme/gpt-4o-mini"
OPENAI = ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 20})
RESPONSES = ("/v1/responses", {"input": "hi", "max_output_tokens": 20})
ANTHROPIC = ("/v1/messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 20})
OLLAMA = ("/api/chat", {"messages": [{"role": "user", "content": "hi"}], "options": {"num_predict": 20}, "stream": False})
GOOGLE = (
    "/v1beta/models/{model}:generateContent",
    {"contents": [{"parts": [{"text": "hi"}]}], "generationConfig": {"maxOutputTokens": 20}},
)
SURFACES = {"openai": OPENAI, "responses": RESPONSES, "anthropic": ANTHROPIC, "ollama": OLLAMA, "google": GOOGLE}
# Per protocol: where its error says what kind it is, for 401, 403, an exhausted budget and a rate.
KINDS: dict[str, tuple[Callable[[Any], str], tuple[str, str, str, str]]] = {
    "openai": (
        lambda e: e["error"]["code"],
        ("invalid_api_key", "model_not_allowed", "insufficient_quota", "rate_limit_exceeded"),
    ),
    "anthropic": (
        lambda e: e["error"]["type"],
        ("authentication_error", "permission_error", "billing_error", "rate_limit_error"),
    ),
    "google": (
        lambda e: e["error"]["status"],
        ("UNAUTHENTICATED", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED"),
    ),
    "ollama": (
        lambda e: "words" if e["error"] and isinstance(e["error"], str) else "none",
        ("words", "words", "words", "words"),
    ),
}
KINDS["responses"] = KINDS["openai"]


class Scripted:
    """A backend that says one word for so many tokens."""

    def __init__(self, model: ModelInfo) -> None:
        self.models, self.asked = (model,), list[ChatRequest]()

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        self.asked.append(request)
        await asyncio.sleep(0)
        yield TextDelta("word", tokens=1)
        yield Usage(40, 10)
        yield Finish("stop")

    def count_tokens(self, request: ChatRequest) -> int | None:
        return 4 if self.models[0].local else None


@dataclass
class House:
    """A server over a real router and ledger, whose local model and whose supplier are scripted."""

    client: httpx2.Client
    ledger: Ledger
    home: Scripted
    away: Scripted
    purse: Purse

    def key(self, *scopes: str, name: str = "k") -> tuple[str, str]:
        """(id, secret) of a new key that the door knows."""
        key, secret = keys.create(self.ledger.engine, name, scopes)
        deadline = time.monotonic() + 10
        while self.get("/v1/models").status_code != 401 or self.get("/v1/models", secret).status_code == 401:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return key.id, secret

    def get(self, path: str, secret: str = "", **headers: str) -> httpx2.Response:
        return self.client.get(path, headers=({"authorization": f"Bearer {secret}"} if secret else {}) | headers)

    def ask(self, secret: str, surface: str = "openai", model: str = "local", **more: Any) -> httpx2.Response:
        path, body = SURFACES[surface]
        path, body = path.replace("{model}", model), body | ({} if surface == "google" else {"model": model}) | more
        name = {"anthropic": "x-api-key", "google": "x-goog-api-key"}.get(surface, "authorization")
        value = secret if name.startswith("x-") else f"Bearer {secret}"
        return self.client.post(path, json=body, headers={name: value} if secret else {})

    def row(self, answer: httpx2.Response) -> dict[str, Any]:
        self.ledger.flush()
        return self.ledger.request(answer.headers["x-baseload-request-id"]) or {}


def opened(serve: Any, url: str, key: str = "", **section: Any) -> Iterator[House]:
    """Starts one."""
    table = {"base_url": "http://127.0.0.1:1", "price_provider": "openai"}
    profile = parse_profile("acme", table | {"models": [{"id": "gpt-4o-mini", "context_length": 9000}]})
    ledger, running = Ledger.open(url), serve(started=False, key=key, **section)
    purse, ring = Purse(ledger.engine), Keyring(ledger.engine)
    home, away = Scripted(ModelInfo("small", 4096)), Scripted(profile.models[0])
    policy = Policy(allowed_suppliers=frozenset({"acme"}), data_classes={"mail": frozenset({"acme"})})
    router = Router([home], {"acme": (profile, away)}, policy, ledger, purse=purse)
    running.app.state.life.start(Services(router, ledger, keyring=ring))
    with httpx2.Client(base_url=running.url, timeout=20) as client:
        yield House(client, ledger, home, away, purse)
    running.stop()
    purse.close()
    ring.close()
    ledger.close()


@pytest.fixture
def house(serve: Any, tmp_path: Path) -> Iterator[House]:
    yield from opened(serve, f"sqlite:///{tmp_path}/ledger.db")


@pytest.fixture
def owned(serve: Any, tmp_path: Path) -> Iterator[House]:
    """One with a key of its own, too."""
    yield from opened(serve, f"sqlite:///{tmp_path}/ledger.db", key="s3cret")


# --------------------------------------------------------------------------------------------------------- who gets in


def test_before_the_first_key_everybody_is_let_in_and_after_it_nobody_without(house: House):
    assert house.ask("").status_code == house.ask("sk-anything").status_code == 200
    assert house.get("/metrics").status_code == 200
    id, secret = house.key()
    assert house.ask(secret).status_code == 200
    for wrong in ("", "sk-anything", secret[:-1], secret.swapcase(), f"bl-{id}-", f"bl-{id}", "bl-' OR 1=1 --"):
        refused = house.ask(wrong)
        assert refused.status_code == 401 and secret not in refused.text and id not in refused.text
    assert house.get("/metrics").status_code == 401  # this machine alone is nobody any more
    assert house.get("/health").status_code == 200


def test_a_revoked_key_opens_nothing_within_a_second_and_what_is_left_stays_locked(house: House):
    id, secret = house.key()
    assert house.ask(secret).status_code == 200
    keys.revoke(house.ledger.engine, id)
    time.sleep(1)
    assert house.ask(secret).status_code == house.ask("").status_code == 401


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "x-goog-api-key"])
def test_each_clients_header_is_read_and_two_keys_that_differ_are_none(house: House, name: str):
    _, secret = house.key()
    value = f"Bearer {secret}" if name == "authorization" else secret
    assert house.get("/v1/models", **{name: value}).status_code == 200
    other = "x-api-key" if name != "x-api-key" else "x-goog-api-key"
    assert house.get("/v1/models", **{name: value, other: secret}).status_code == 200
    assert house.get("/v1/models", **{name: value, other: "else"}).status_code == 401


def test_the_servers_own_key_is_the_admins_and_a_virtual_one_is_not(owned: House):
    _, secret = owned.key()
    _, chief = owned.key("admin")
    assert [owned.get("/metrics", k).status_code for k in ("s3cret", chief, secret, "")] == [200, 200, 403, 401]
    mine, theirs = owned.ask(secret), owned.ask("s3cret")
    page = f"/v1/requests/{mine.headers['x-baseload-request-id']}"
    assert [owned.get(page, k).status_code for k in (secret, chief, "s3cret", "")] == [200, 200, 200, 401]
    assert owned.get(f"/v1/requests/{theirs.headers['x-baseload-request-id']}", secret).status_code == 404
    assert owned.row(theirs)["key_id"] == "BASELOAD_API_KEY"


def test_keys_can_be_required_before_there_is_one(serve: Any, tmp_path: Path):
    for house in opened(serve, f"sqlite:///{tmp_path}/ledger.db", require_keys=True):
        assert house.ask("").status_code == house.ask("sk-none").status_code == 401
        assert house.ask(house.key()[1]).status_code == 200


def test_a_key_with_a_scope_that_nobody_knows_opens_nothing(house: House):
    _, secret = keys.create(house.ledger.engine, "of a newer version", ["moon:full"])
    house.key()
    assert house.ask(secret).status_code == 401


def test_the_requests_row_says_whose_it_is(house: House):
    id, secret = house.key()
    assert house.row(house.ask(secret))["key_id"] == id
    assert house.row(house.ask(secret, model=AWAY))["key_id"] == id


async def test_when_the_ledger_is_away_the_keys_last_seen_hold_for_a_minute(tmp_path: Path):
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.db")
    _, secret = keys.create(ledger.engine, "k")
    now = 0.0
    ring = Keyring(ledger.engine, lambda: now)
    assert await ring.find(secret)
    ledger.close()
    for path in tmp_path.glob("ledger.db*"):
        path.unlink()
    tmp_path.joinpath("ledger.db").mkdir()
    now = 50.0
    assert await ring.find(secret)
    now = 70.0
    with pytest.raises(Unavailable):
        await ring.find(secret)
    ring.close()


# ------------------------------------------------------------------------------------------------- in each one's shape


@pytest.mark.parametrize("surface", list(SURFACES))
def test_every_refusal_has_its_protocols_shape(house: House, surface: str):
    kind, (unknown, forbidden, broke, fast) = KINDS[surface]
    id, secret = house.key("model:local", f"model:{AWAY}")
    refused = house.ask("bl-nobody", surface)
    assert (refused.status_code, kind(refused.json())) == (401, unknown)
    refused = house.ask(secret, surface, "auto")
    assert (refused.status_code, kind(refused.json())) == (403, forbidden)
    assert house.ask(secret, surface, AWAY).status_code == 200

    budgets.put(house.ledger.engine, "key", id, "day", 0)
    time.sleep(1.1)
    for stream in (False, True):
        more = {} if surface == "google" else {"stream": stream}
        refused = house.ask(secret, surface, AWAY, **more)
        assert (refused.status_code, kind(refused.json())) == (402 if surface == "anthropic" else 429, broke)
        assert "retry-after" not in refused.headers and "budget" in refused.text and "RetryInfo" not in refused.text
        assert refused.headers["x-should-retry"] == "false"
    assert house.ask(secret, surface).status_code == 200  # what runs here costs nothing

    _, hasty = house.key("rpm:2")
    assert [house.ask(hasty, surface).status_code for _ in range(2)] == [200, 200]
    refused = house.ask(hasty, surface)
    assert (refused.status_code, kind(refused.json())) == (429, fast)
    assert 1 <= int(refused.headers["retry-after"]) <= 30


# --------------------------------------------------------------------------------------------------------- what it may


def test_a_key_sees_and_asks_only_its_models(house: House):
    _, secret = house.key("model:local")
    assert [m["id"] for m in house.get("/v1/models", secret).json()["data"]] == ["local"]
    assert house.ask(secret, model="small").status_code == 403
    assert house.ask(secret, model="nobody").status_code == 404
    checks: dict[str, Any] = {"baseload": {"checks": [{"type": "judge", "rubric": "good", "model": "small"}]}}
    assert house.ask(secret, **checks).status_code == 403


def test_a_local_key_goes_to_no_supplier(house: House):
    _, secret = house.key("local")
    assert AWAY not in house.get("/v1/models", secret).text
    refused = house.ask(secret, model=AWAY)
    assert refused.status_code == 403 and "supplier" in refused.text and house.away.asked == []
    assert house.ask(secret, model="auto").status_code == 200


def test_a_key_may_send_only_its_classes_of_data(house: House):
    _, secret = house.key("data:mail")
    assert house.row(house.ask(secret, model=AWAY))["data_class"] == "mail"  # its only class is what it sends
    refused = house.ask(secret, baseload={"data_class": "health"})
    assert refused.status_code == 403 and "mail" in refused.text
    _, two = house.key("data:mail", "data:code")
    assert house.ask(two).status_code == 403
    assert house.ask(two, baseload={"data_class": "code"}).status_code == 200
    assert house.ask(two, model=AWAY, baseload={"data_class": "code"}).status_code == 403  # may go nowhere


def test_tokens_count_once_they_are_known(house: House):
    _, secret = house.key("tpm:100")  # an answer takes 50
    assert [house.ask(secret).status_code for _ in range(3)] == [200, 200, 429]
    assert house.get("/v1/models", secret).status_code == 200


# --------------------------------------------------------------------------------------------------------------- tenants


def test_another_keys_answers_are_not_there(house: House):
    (_, mine), (_, theirs) = house.key(), house.key()
    id = house.ask(mine, "responses").json()["id"]
    assert house.get(f"/v1/responses/{id}", mine).status_code == 200
    assert house.get(f"/v1/responses/{id}", theirs).status_code == 404
    assert house.get(f"/v1/responses/{id}/input_items", theirs).status_code == 404
    assert house.ask(theirs, "responses", previous_response_id=id).status_code == 404
    assert house.client.delete(f"/v1/responses/{id}", headers={"x-api-key": theirs}).status_code == 404
    assert house.ask(mine, "responses", previous_response_id=id).status_code == 200


def test_feedback_is_on_ones_own_answers(house: House):
    (_, mine), (_, theirs) = house.key(), house.key()
    name = house.ask(mine).headers["x-baseload-request-id"]
    said = {"request_id": name, "accepted": True}
    for secret, status in ((theirs, 404), (mine, 200)):
        assert house.client.post("/v1/feedback", json=said, headers={"x-api-key": secret}).status_code == status


def test_only_an_admin_speaks_as_an_audit_and_of_anybodys_answer(house: House):
    (_, mine), (_, chief) = house.key(), house.key("admin")
    said = {"request_id": house.ask(mine).headers["x-baseload-request-id"], "accepted": False, "source": "audit"}
    for secret, status in ((mine, 403), (chief, 200)):
        assert house.client.post("/v1/feedback", json=said, headers={"x-api-key": secret}).status_code == status


def test_the_backend_is_told_whose_request_it_is(owned: House):
    id, secret = owned.key()
    owned.ask(secret)
    owned.ask("s3cret")
    assert [request.tenant for request in owned.home.asked] == [id, ""]


# ------------------------------------------------------------------------------------------------------------- the cost


def test_guessing_keys_asks_the_database_nothing(house: House):
    house.key()
    statements: list[str] = []

    def count(_c: Any, _k: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(house.ledger.engine, "before_cursor_execute", count)
    for _ in range(100):
        house.get("/v1/models", "bl-000000000000-guess")
    event.remove(house.ledger.engine, "before_cursor_execute", count)
    assert len([s for s in statements if "keys" in s]) < 50
