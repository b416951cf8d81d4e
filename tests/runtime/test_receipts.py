"""Receipts: each answer says what it can be made again with, and with that it is."""

from types import SimpleNamespace
from typing import Any, cast

from baseload.runtime.models.chat_template import ChatTemplate
from baseload.runtime.models.model_file import LoadedModel
from baseload.runtime.receipts import Identity, kernels_digest, settings_digest, template_digest, tokens_digest
from baseload.wire.chat import Event, Receipt, SamplingParams, Usage

from .local_house import House, answer, chat, house


def receipts(events: list[Event]) -> list[Receipt]:
    return [event.receipt for event in events if isinstance(event, Usage) and event.receipt is not None]


async def test_a_sampled_answer_without_a_seed_is_given_one_and_comes_again_with_it():
    async with house() as h:
        h.engine.identity = Identity("m", "t", "k")
        begun, ended = receipts(await answer(h.backend, chat(temperature=1.5, n=2)))
        other = receipts(await answer(h.backend, chat(temperature=1.5, n=2)))[-1]
        again = receipts(await answer(h.backend, chat(temperature=1.5, n=2, seed=ended.seed)))[-1]
    assert begun.seed == ended.seed is not None and 0 <= (ended.seed or 0) < 2**63
    assert (begun.tokens, begun.tokens_digest) == ((), None)
    assert [len(ids) for ids in ended.tokens] == [5, 5] and ended.tokens[0] != ended.tokens[1]
    assert other.seed != ended.seed and other.tokens != ended.tokens
    assert again == ended and (ended.model, ended.template, ended.kernels) == ("m", "t", "k")


async def test_a_greedy_answer_draws_nothing():
    async with house() as h:
        assert [one.seed for one in receipts(await answer(h.backend, chat()))] == [None, None]
        assert receipts(await answer(h.backend, chat(seed=-5)))[-1].seed == -5


async def settings_of(place: House, **said: Any) -> str | None:
    return receipts(await answer(place.backend, chat(**said)))[-1].settings


async def test_the_settings_of_an_answer_are_those_that_held_for_it():
    endless: dict[str, Any] = {"max_tokens": None, "stop": ("~",), "ignore_eos": False}
    async with house() as h, house(sampling={"top_k": 3}) as wishing, house(n_pages=20) as small:
        plain = await settings_of(h)
        assert plain == await settings_of(h, seed=9) == await settings_of(small)
        others = [
            await settings_of(h, temperature=0.5),
            await settings_of(h, max_tokens=6),
            await settings_of(wishing),
            await settings_of(h, **endless),
            await settings_of(small, **endless),
        ]
    assert len({plain, *others}) == 6


def test_prompt_and_answers_are_told_apart():
    digests = {tokens_digest(prompt, answers) for prompt, answers in (([1, 2], [[3]]), ([1], [[2, 3]]), ([1, 2], [[], [3]]))}
    assert len(digests) == 3


def test_the_seed_is_no_setting():
    assert settings_digest(SamplingParams(seed=1), 5) == settings_digest(SamplingParams(seed=2), 5)
    assert settings_digest(SamplingParams(), 5) != settings_digest(SamplingParams(), 6)


def test_kernels_and_templates_are_known_by_what_they_are(tmp_path: Any):
    def model(source: str) -> LoadedModel:
        return cast(LoadedModel, SimpleNamespace(template=ChatTemplate(source), path=tmp_path / "model.gguf"))

    assert kernels_digest("avx2") != kernels_digest("amx") == kernels_digest("amx")
    assert template_digest(model("{{ a }}")) == template_digest(model("{{ a }}")) != template_digest(model("{{ b }}"))
