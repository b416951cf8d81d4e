"""A supplier that fails in every way: each stream ends in exactly one Finish or Failure, and retries stay in their budget."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest

from baseload.router.suppliers.profile import SupplierError, load_profiles, parse_profile
from baseload.router.suppliers.resilience import OPEN_AFTER, Breaker, Resilient, RetryBudget
from baseload.wire.chat import ChatRequest, Event, Failure, Finish, Message, Text, TextDelta, Usage
from baseload.wire.client import Connection, HttpBackend
from baseload.wire.egress import Egress, EgressRecord, is_loopback
from baseload.wire.errors import EgressDenied

from .upstream import DONE, GOOD, HEAD, SPEECHES, Upstream, chunk, faults, nobody, status, upstream

REQUEST = ChatRequest("big", (Message("user", (Text("hi"),)),))
FAULTS = faults(SPEECHES["openai_chat"])
CASES = [(protocol, fault) for protocol in SPEECHES for fault in FAULTS]


async def collect(events: AsyncGenerator[Event, None]) -> list[Event]:
    return [event async for event in events]


def ends(events: list[Event]) -> list[type]:
    return [type(e) for e in events if isinstance(e, Finish | Failure)]


async def test_a_good_answer():
    async with upstream((GOOD, "close")) as (source, backend):
        events = await collect(backend.generate(REQUEST))
        assert "".join(e.text for e in events if isinstance(e, TextDelta)) == "hello"
        assert events[-2:] == [Usage(3, 2), Finish("stop")]
        assert source.bodies[0]["model"] == "big" and source.bodies[0]["stream"] is True


async def test_an_answer_that_comes_whole():
    body = {"choices": [{"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}
    async with upstream((status(200, body=json.dumps(body).encode()), "close")) as (_, backend):
        assert await collect(backend.generate(REQUEST)) == [TextDelta("hi", tokens=1), Usage(1, 0), Finish("stop")]


async def test_two_finishes_are_one():
    async with upstream((HEAD + chunk("a", "stop") + chunk("b", "length") + DONE, "close")) as (_, backend):
        assert ends(await collect(backend.generate(REQUEST))) == [Finish]


@pytest.mark.parametrize("protocol", SPEECHES)
async def test_each_protocols_good_answer(protocol: str):
    async with upstream((SPEECHES[protocol].good, "close"), protocol=protocol) as (source, backend):
        events = await collect(backend.generate(REQUEST))
        assert "".join(e.text for e in events if isinstance(e, TextDelta)) == "hello"
        assert events[-2:] == [Usage(3, 2), Finish("stop")]
        assert "big" in source.paths[0] + json.dumps(source.bodies[0])


@pytest.mark.parametrize(("protocol", "fault"), CASES)
async def test_every_fault_ends_in_one_failure(protocol: str, fault: str):
    async with upstream(faults(SPEECHES[protocol])[fault], protocol=protocol) as (_, backend):
        async with asyncio.timeout(5):
            events = await collect(backend.generate(REQUEST))
    assert ends(events) == [Failure] and isinstance(events[-1], Failure)
    assert events[-1].status in (429, 502, 503) and len(events[-1].message) < 300


@pytest.mark.parametrize("protocol", SPEECHES)
async def test_64_streams_over_all_faults_end_once_each(protocol: str):
    known = list(faults(SPEECHES[protocol]).values())
    async with upstream(*[known[i % len(known)] for i in range(64)], protocol=protocol) as (_, backend):
        async with asyncio.timeout(20):
            streams = await asyncio.gather(*[collect(backend.generate(REQUEST)) for _ in range(64)])
    assert all(len(ends(events)) == 1 for events in streams)


async def test_refused_connections():
    backend = HttpBackend(Connection("acme", "http://127.0.0.1:9/v1"), [], Egress(frozenset(), nobody))
    (failure,) = await collect(backend.generate(REQUEST))
    assert isinstance(failure, Failure) and failure.retryable and "cannot be reached" in failure.message
    await backend.close()


async def test_leaving_early_closes_the_connection():
    async with upstream((HEAD + chunk("hel"), "stall")) as (source, backend):
        events = backend.generate(REQUEST)
        assert isinstance(await anext(events), TextDelta)
        await events.aclose()
        await asyncio.wait_for(source.gone.wait(), 2)


# ------------------------------------------------------------------------------------------------- retries


async def resilient(*scripts: tuple[bytes, str]) -> tuple[list[Event], Upstream, Resilient]:
    async with upstream(*scripts) as (source, backend):
        guarded = Resilient(backend, "acme", sleep=no_sleep)
        return await collect(guarded.generate(REQUEST)), source, guarded


async def no_sleep(seconds: float) -> None:
    pass


async def test_a_failure_before_the_first_word_is_tried_again_with_a_key_of_its_own():
    events, source, _ = await resilient(FAULTS["500"], FAULTS["reset before a byte"], (GOOD, "close"))
    assert ends(events) == [Finish] and source.calls == 3 and len(set(source.keys)) == 3


async def test_three_tries_and_no_more():
    events, source, _ = await resilient(FAULTS["500"])
    assert ends(events) == [Failure] and source.calls == 3


async def test_after_the_first_word_nothing_is_tried_again():
    events, source, _ = await resilient(FAULTS["cut after some words"], (GOOD, "close"))
    assert ends(events) == [Failure] and source.calls == 1


async def test_a_refusal_is_not_tried_again():
    _, source, guarded = await resilient((status(400), "close"))
    assert source.calls == 1 and guarded.breaker("big").failures == 0


def test_the_retry_budget_is_a_share_of_what_is_live():
    budget = RetryBudget()
    budget.live = 10
    assert [budget.take() for _ in range(4)] == [True, True, True, False]
    budget.live = 100
    assert sum(budget.take() for _ in range(100)) == 17


def test_the_breaker_opens_probes_and_closes():
    now = [0.0]
    breaker = Breaker(lambda: now[0])
    for _ in range(OPEN_AFTER):
        assert breaker.admits()
        breaker.failed()
    assert not breaker.admits()
    now[0] = 10
    assert [breaker.admits(), breaker.admits()] == [True, False]  # one probe
    breaker.failed()
    now[0] = 29
    assert not breaker.admits()  # it now rests twice as long
    now[0] = 31
    assert breaker.admits()
    breaker.succeeded()
    assert breaker.admits() and breaker.pause_s == 10


def test_a_probe_whose_client_left_lets_the_next_one_probe():
    now = [0.0]
    breaker = Breaker(lambda: now[0], failures=OPEN_AFTER, open_until=0.0)
    assert breaker.admits() and not breaker.admits()
    breaker.abandoned()
    assert breaker.admits()


async def test_an_open_breaker_calls_nobody():
    async with upstream((GOOD, "close")) as (source, backend):
        guarded = Resilient(backend, "acme", clock=lambda: 5.0, sleep=no_sleep)
        guarded.breaker("big").open_until = 9.0
        (failure,) = await collect(guarded.generate(REQUEST))
        assert isinstance(failure, Failure) and failure.status == 503 and failure.retry_after == 4 and source.calls == 0


# ------------------------------------------------------------------------------------------------- the door


Record = Callable[[EgressRecord], Awaitable[None]]


async def test_the_record_is_written_before_the_call_and_without_it_there_is_none():
    seen: list[EgressRecord] = []

    async def write(record: EgressRecord) -> None:
        seen.append(record)
        raise OSError("disk full")

    backend = HttpBackend(Connection("acme", "http://supplier.invalid/v1"), [], Egress(frozenset({"supplier.invalid"}), write))
    (failure,) = await collect(backend.generate(REQUEST))
    assert isinstance(failure, Failure)
    assert [(r.host, r.port, r.allowed) for r in seen] == [("supplier.invalid", 80, True)]
    await backend.close()


@pytest.mark.parametrize(("allowed", "air_gap"), [(frozenset[str](), False), (frozenset({"supplier.invalid"}), True)])
async def test_what_is_denied_is_recorded_and_never_looked_up(allowed: frozenset[str], air_gap: bool, monkeypatch: Any):
    seen: list[EgressRecord] = []

    async def write(record: EgressRecord) -> None:
        seen.append(record)

    async def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a name was looked up")

    monkeypatch.setattr("aiohttp.ThreadedResolver.resolve", never)
    door = Egress(allowed, write, air_gap=air_gap)
    backend = HttpBackend(Connection("acme", "https://supplier.invalid/v1"), [], door)
    (failure,) = await collect(backend.generate(REQUEST))
    assert isinstance(failure, Failure) and failure.status == 403 and failure.code == "egress_denied"
    assert [r.allowed for r in seen] == [False]
    with pytest.raises(EgressDenied):
        await door.leave("supplier.invalid", 443, "pull")
    await backend.close()


@pytest.mark.parametrize(
    ("host", "free"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("127.8.8.8", True),
        ("10.0.0.1", False),
        ("localhost.x.org", False),
    ],
)
def test_loopback_is_known_by_name_or_number(host: str, free: bool):
    assert is_loopback(host) is free


# ------------------------------------------------------------------------------------------------- profiles


def test_shipped_suppliers_load_and_a_table_lays_over_them(pytestconfig: pytest.Config):
    shipped = pytestconfig.rootpath / "configs" / "suppliers"
    profiles = load_profiles(shipped, {"deepseek": {"first_byte_s": 5.0}})
    assert profiles["deepseek"].first_byte_s == 5.0 and profiles["deepseek"].host.endswith("deepseek.com")
    assert all(p.models and p.api_key_env for p in profiles.values())


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ({}, "base_url"),
        ({"base_url": "ftp://x"}, "base_url"),
        ({"base_url": "http://user:pw@x"}, "base_url"),
        ({"base_url": "http://x", "ulr": 1}, "ulr"),
        ({"base_url": "http://x", "kind": "soap"}, "kind"),
        ({"base_url": "http://x", "models": ["a"]}, "model"),
        ({"base_url": "http://x", "connect_s": -1}, "connect_s"),
        ({"base_url": "http://x", "drop_fields": "a"}, "drop_fields"),
    ],
)
def test_a_broken_supplier_says_what_is_wrong(table: dict[str, Any], word: str):
    with pytest.raises(SupplierError, match=word):
        parse_profile("acme", table)


def test_a_supplier_without_its_key_is_not_ready(monkeypatch: pytest.MonkeyPatch):
    profile = parse_profile("acme", {"base_url": "http://x", "api_key_env": "ACME_KEY"})
    monkeypatch.delenv("ACME_KEY", raising=False)
    assert "ACME_KEY" in profile.not_ready
    monkeypatch.setenv("ACME_KEY", "k")
    assert profile.not_ready == "" and profile.connection().api_key == "k"
