"""The local model as a Backend: events in their order, choices, echo, and every failure as an event."""

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any, cast

import pytest

from baseload.runtime.engine import Engine
from baseload.runtime.local_backend import LONG_PROMPT
from baseload.wire.chat import ChatRequest, Event, Failure, Finish, SamplingParams, TextDelta, Usage
from baseload.wire.errors import BadRequest

from .engine.fake_model import FakeRunner
from .local_house import BOS, Letters, answer, chat, house, idle, kinds, plain, text

# ------------------------------------------------------------------------------------------- an answer


async def test_usage_comes_with_the_first_token_and_before_the_last_finish():
    async with house() as h:
        events = await answer(h.backend, chat())
    assert kinds(events) == ["Usage", *["TextDelta"] * 5, "Usage", "Finish"]
    assert events[0] == Usage(5, 0) and events[-2] == Usage(5, 5) and events[-1] == Finish("length")
    assert [event.tokens for event in events if isinstance(event, TextDelta)] == [1] * 5 and len(text(events)) == 5


async def test_what_a_prompt_takes_from_the_cache_is_told():
    async with house() as h:
        first = await answer(h.backend, chat("a long enough prompt".replace(" ", "_")))
        second = await answer(h.backend, chat("a long enough prompt".replace(" ", "_")))
    assert first[0] == Usage(20, 0, 0) and second[0] == Usage(20, 0, 16) and second[-2] == Usage(20, 5, 16)
    assert text(first) == text(second)


async def test_a_stop_is_named():
    async with house() as h:
        whole = text(await answer(h.backend, chat()))
        events = await answer(h.backend, chat(stop=(whole[2:4],)))
    assert text(events) == whole[: whole.index(whole[2:4])] and events[-1] == Finish("stop", 0, whole[2:4])


async def test_logprobs_go_along_with_their_tokens():
    async with house() as h:
        events = await answer(h.backend, chat(logprobs=1))
    deltas = [event for event in events if isinstance(event, TextDelta)]
    assert "".join(delta.logprobs[0].token for delta in deltas) == text(events)


async def test_all_choices_end_once_and_the_prompt_is_counted_once():
    async with house() as h:
        events = await answer(h.backend, chat(n=4, temperature=1.5, seed=3))
        alone = await answer(h.backend, chat(n=1, temperature=1.5, seed=3))
    finishes = [event for event in events if isinstance(event, Finish)]
    assert sorted(finish.index for finish in finishes) == [0, 1, 2, 3] and isinstance(events[-1], Finish)
    assert events[-2] == Usage(5, 20, 0) and kinds(events).count("Usage") == 2
    assert len({text(events, i) for i in range(4)}) == 4, "one seed, four draws"
    assert text(events, 0) == text(alone)


# ------------------------------------------------------------------------------------------- prompts


async def test_a_plain_prompt_may_write_control_tokens_and_a_message_may_not():
    async with house() as h:
        raw, ids = await answer(h.backend, plain("a b")), await answer(h.backend, plain((64, BOS, 65)))
        assert text(raw) == text(ids)
        assert isinstance((await answer(h.backend, chat("a b")))[-1], Failure), "the fake has no plain space"


@pytest.mark.parametrize(("prompt", "n"), [("abc", 4), (" abc", 4), ("", 1), ((1, 2, 3), 3)])
async def test_the_beginning_of_the_sequence_is_put_first_once(prompt: str | tuple[int, ...], n: int):
    """Where the model wants it, and not before ids, which are taken as they are."""
    async with house(add_bos=True) as h:
        assert (await answer(h.backend, plain(prompt)))[0] == Usage(n, 0)
        assert h.backend.count_tokens(plain(prompt)) == n


async def test_echo_says_the_prompt_first_in_each_choice():
    async with house() as h:
        events = await answer(h.backend, plain("abc", echo=True, n=2, temperature=1.0))
        by_ids = await answer(h.backend, plain((64, 65, BOS, 66), echo=True))
    assert events[:2] == [TextDelta("abc", 0), TextDelta("abc", 1)]
    assert text(events, 0).startswith("abc") and text(events, 1).startswith("abc")
    assert text(by_ids)[:3] == "abc" and by_ids[-2] == Usage(4, 5), "an echo is not generated"


async def test_a_slow_template_does_not_stop_the_event_loop():
    async with house() as h:
        h.template.slow.clear()
        waiting = asyncio.create_task(answer(h.backend, chat()))
        while not h.template.begun.is_set():
            await asyncio.sleep(0.005)
        assert len(text(await answer(h.backend, plain("abc")))) == 5, "another request is answered meanwhile"
        h.template.slow.set()
        assert len(text(await waiting)) == 5 and h.template.thread != threading.main_thread().name


async def test_a_long_plain_prompt_is_tokenised_elsewhere(monkeypatch: pytest.MonkeyPatch):
    threads: list[str] = []

    def encode(self: Letters, prompt: str, *, specials: bool) -> list[int]:
        threads.append(threading.current_thread().name)
        return [1, 2, 3]

    monkeypatch.setattr(Letters, "encode", encode)
    monkeypatch.setattr(Letters, "longest_token", 9999)
    async with house() as h:
        await answer(h.backend, plain("x" * (LONG_PROMPT - 1)))
        await answer(h.backend, plain("x" * LONG_PROMPT))
    assert threads[0] == threading.main_thread().name != threads[1]


# ------------------------------------------------------------------------------------------- failures are events


@pytest.mark.parametrize(
    ("request_", "status", "code", "says"),
    [
        (chat("refuse"), 400, "invalid_request", "does not like"),
        (chat("crash"), 500, "internal_error", "log has the details"),
        (chat("x" * 100), 400, "context_length_exceeded", "maximum context length is 100 tokens.*100 tokens"),
        (plain("x" * 5000), 400, "context_length_exceeded", "maximum context length is 100 tokens"),
        (plain((1,) * 100), 400, "context_length_exceeded", "100 tokens"),
        (plain((1, 200)), 400, "invalid_request", "vocabulary"),
        (plain(()), 400, "invalid_request", "empty"),
        (chat(logit_bias=((500, 1.0),)), 400, "invalid_request", "logit_bias"),
    ],
    ids=["refused", "crash", "too long", "far too long", "too many ids", "unknown id", "nothing", "bias"],
)
async def test_what_cannot_be_answered_is_one_failure(request_: ChatRequest, status: int, code: str, says: str):
    async with house() as h:
        (failure,) = await answer(h.backend, request_)
        assert isinstance(failure, Failure) and (failure.status, failure.code) == (status, code)
        assert "secret" not in failure.message
        assert re.search(says, failure.message), failure.message
        assert len(text(await answer(h.backend, chat()))) == 5, "the next one is answered"


async def test_a_full_engine_is_a_failure_to_be_tried_again_and_all_or_no_choices_run():
    async with house(max_batch=2, max_queue=1) as h:
        (failure,) = await answer(h.backend, chat(n=4))
        assert isinstance(failure, Failure) and (failure.status, failure.retryable) == (429, True) and failure.retry_after
        await idle(h.engine)
        events = await answer(h.backend, chat(n=3))
        assert [kind for kind in kinds(events) if kind != "TextDelta"].count("Finish") == 3


async def test_a_failure_of_one_choice_ends_the_whole_answer():
    failing = threading.Event()

    def fail(batch: object) -> None:
        if failing.is_set():
            raise RuntimeError("device lost")

    async with house(runner=FakeRunner(before_run=fail)) as h:
        failing.set()
        events = await answer(h.backend, chat(n=3))
        assert kinds(events) == ["Failure"] and cast(Failure, events[0]).code == "internal_error"
        failing.clear()
        assert len(text(await answer(h.backend, chat()))) == 5


async def test_what_an_answer_took_is_told_even_if_it_breaks():
    steps: list[object] = []

    def fail(batch: object) -> None:
        steps.append(batch)
        if len(steps) == 3:
            raise RuntimeError("device lost")

    async with house(runner=FakeRunner(before_run=fail)) as h:
        events = await answer(h.backend, chat())
        usage, good = events[-2], (await answer(h.backend, chat()))[-2]
    assert kinds(events) == ["Usage", "TextDelta", "TextDelta", "Usage", "Failure"]
    for told in (usage, good):
        assert isinstance(told, Usage) and told.device_seconds is not None and told.input_seconds is not None
        assert 0 < told.input_seconds < told.device_seconds
    assert usage == Usage(5, 2)


# ------------------------------------------------------------------------------------------- leaving early


@pytest.fixture
def steps() -> Iterator[threading.Semaphore]:
    """The model makes a step for each release; in the end it may run freely."""
    permits = threading.Semaphore(0)
    yield permits
    permits.release(10_000)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_leaving_stops_all_choices_within_a_step(steps: threading.Semaphore, n: int, how: str):
    runner = FakeRunner(before_run=lambda batch: cast(None, steps.acquire(timeout=20)))
    async with house(runner=runner) as h:
        steps.release(3)
        events = h.backend.generate(chat(n=n, max_tokens=80))
        await anext(events)
        await anext(events)
        if how == "close":
            await events.aclose()
        else:
            reader = asyncio.create_task(_drain(events))
            await asyncio.sleep(0.02)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        before = h.engine.stats().generation_tokens
        steps.release(10_000)
        await idle(h.engine)
        assert h.engine.stats().generation_tokens <= before + 3 * n, "at most the steps that were under way"
        stats = h.engine.stats()
        assert stats.pages_free + stats.pages_cached == stats.pages_total


async def _drain(events: AsyncIterator[Event]) -> None:
    async for _ in events:
        pass


async def test_leaving_while_the_template_runs_leaves_nothing_behind():
    async with house() as h:
        h.template.slow.clear()
        reader = asyncio.create_task(answer(h.backend, chat()))
        while not h.template.begun.is_set():
            await asyncio.sleep(0.005)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        h.template.slow.set()
        await asyncio.sleep(0.02)
        assert h.engine.stats().steps == 0


# ------------------------------------------------------------------------------------------- what it says of itself


async def test_what_is_known_of_the_model():
    async with house() as h:
        (info,) = h.backend.models
        assert (info.id, info.context_length, info.local, info.tools, info.created) == ("tiny", 100, True, True, 7)
        assert h.backend.count_tokens(chat("hello")) == 5
        with pytest.raises(BadRequest):
            h.backend.count_tokens(chat("refuse"))
    assert h.template.closed


# ------------------------------------------------------------------------------------------- the model's own wishes


async def test_what_a_client_does_not_say_is_as_the_model_wishes(monkeypatch: pytest.MonkeyPatch):
    """`temperature` of the request's body counts if it is there, be it OpenAI's default."""
    seen: list[SamplingParams] = []
    real = Engine.submit

    def submit(self: Engine, request: Any) -> Any:
        seen.append(request.sampling)
        return real(self, request)

    monkeypatch.setattr(Engine, "submit", submit)
    async with house(sampling={"temperature": 0.25, "top_p": None, "top_k": 7, "do_sample": True}) as h:
        await answer(h.backend, replace(plain("abc"), body={}))
        await answer(h.backend, replace(plain("abc"), body={"temperature": 1.0}))
    assert [(p.temperature, p.top_k, p.top_p) for p in seen] == [(0.25, 7, 1.0), (seen[1].temperature, 7, 1.0)]
    assert seen[1].temperature == plain("abc").sampling.temperature


# ------------------------------------------------------------------------------------------- how sure the model was


async def test_margins_are_those_of_the_log_probabilities_and_change_no_text():
    async with house() as made:
        asked: dict[str, Any] = {"max_tokens": 12}
        plainly, surely, told = [
            await answer(made.backend, chat("hello", **asked, **more)) for more in ({}, {"margins": True}, {"logprobs": 2})
        ]
    assert text(plainly) == text(surely) == text(told)
    entries = [entry for event in told if isinstance(event, TextDelta) for entry in event.logprobs]
    margins = [entry.top[0].logprob - entry.top[1].logprob for entry in entries]
    [end] = [event for event in surely if isinstance(event, Usage) and event.signals]
    assert end.signals is not None and len(margins) == 12
    assert end.signals["margin_mean"] == pytest.approx(sum(margins) / 12, abs=1e-4)
    assert end.signals["margin_least"] == pytest.approx(min(margins), abs=1e-4)
    assert not any(event.signals for event in plainly if isinstance(event, Usage))


async def test_a_drawn_token_may_have_a_margin_below_zero():
    async with house() as made:
        events = await answer(made.backend, chat(temperature=2.0, seed=3, max_tokens=20, margins=True))
    [end] = [event for event in events if isinstance(event, Usage) and event.signals]
    assert end.signals is not None and end.signals["margin_least"] < 0
