"""Answers that keep to a schema, whatever the model would rather say, and end within their tokens."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baseload.kernels.spec import StepOutput
from baseload.runtime.engine import Engine, EngineConfig
from baseload.runtime.engine.detokenize import Detokenizer
from baseload.runtime.engine.grammar import Grammar
from baseload.runtime.engine.request import GenerationRequest, Sequence
from baseload.runtime.engine.sampler import sample
from baseload.runtime.engine.thought import AfterThought, Marks
from baseload.runtime.grammars import GrammarCompiler, json_grammar
from baseload.runtime.loading import Loader, LoadOptions
from baseload.runtime.local_backend import LocalBackend, always
from baseload.runtime.models.load_gguf import open_gguf
from baseload.runtime.models.tokenizer import tokenizer_from_gguf
from baseload.wire.chat import (
    ChatRequest,
    Event,
    Failure,
    Finish,
    Message,
    ReasoningDelta,
    ResponseFormat,
    SamplingParams,
    Text,
    TextDelta,
)
from baseload.wire.errors import BadRequest

NAMES = st.text('abcdefgh_ é"\\', min_size=1, max_size=8)
FORMATS = ["date", "date-time", "uuid", "email", "ipv4", "hostname", "time"]
LEAVES = st.one_of(
    st.just({"type": "string"}),
    st.builds(lambda a, b: {"type": "string", "minLength": a, "maxLength": a + b}, st.integers(0, 9), st.integers(0, 9)),
    st.sampled_from(["^[a-z]{3}$", "^\\d{4}-\\d{2}$", "^(yes|no)+$"]).map(lambda p: {"type": "string", "pattern": p}),
    st.sampled_from(FORMATS).map(lambda f: {"type": "string", "format": f}),
    st.just({"type": "integer"}),
    st.builds(lambda a, b: {"type": "integer", "minimum": a, "maximum": a + b}, st.integers(-99, 99), st.integers(0, 200)),
    st.just({"type": "number"}),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.lists(NAMES | st.integers() | st.booleans() | st.none(), min_size=1, max_size=4).map(lambda v: {"enum": v}),
    st.builds(lambda v: {"const": v}, NAMES | st.integers(-9, 9)),
    st.just({"type": ["string", "null"]}),
)


def _object(properties: dict[str, Any], required: int, closed: bool) -> dict[str, Any]:
    shape = {"type": "object", "properties": properties, "required": list(properties)[:required]}
    return shape | ({"additionalProperties": False} if closed else {})


def _parents(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.builds(_object, st.dictionaries(NAMES, inner, max_size=4), st.integers(0, 4), st.booleans()),
        st.builds(
            lambda i, a, b: {"type": "array", "items": i, "minItems": a, "maxItems": a + b},
            inner,
            st.integers(0, 3),
            st.integers(0, 3),
        ),
        st.builds(lambda i: {"type": "array", "items": i}, inner),
        st.lists(inner, min_size=1, max_size=3).map(lambda s: {"anyOf": s}),
        st.builds(lambda i: {"$defs": {"x": i}, "type": "array", "items": {"$ref": "#/$defs/x"}}, LEAVES),
    )


SCHEMAS = st.recursive(LEAVES, _parents, max_leaves=8)


@pytest.fixture(scope="session")
def compiler(smollm2: Path) -> Iterator[GrammarCompiler]:
    made = GrammarCompiler(tokenizer_from_gguf(open_gguf(smollm2).metadata), 49152)
    yield made
    made.close()


MARKS = ("<think>", "</think>")


def after_thought(compiler: GrammarCompiler, grammar: Grammar, begun: bool) -> AfterThought:
    opening, closing = (tuple(compiler._tokenizer.encode(mark, specials=True)) for mark in MARKS)
    assert len(opening) > 1 and len(closing) > 1  # the harder case: a mark in several tokens
    return AfterThought(grammar, Marks(opening, closing, MARKS[1].encode()), begun=begun)


def compiled(compiler: GrammarCompiler, schema: Any) -> Grammar | None:
    """None where the schema is one that is refused."""
    try:
        return asyncio.run(compiler.compiled(json_grammar(schema), "response_format"))
    except BadRequest:
        return None


def babble(
    compiler: GrammarCompiler, grammar: Grammar | AfterThought, most: int, temperature: float, seed: int, liked: str = ""
) -> tuple[str, bool]:
    """What a model says whose logits are noise, but that it likes the tokens of `liked`, and whether it came to its end in
    `most` tokens."""
    rng = np.random.default_rng(seed)
    tokenizer = compiler._tokenizer
    request = GenerationRequest("x", [1], SamplingParams(temperature=temperature, seed=seed), grammar=grammar)
    sequence = Sequence(request, seed, 1 + most, Detokenizer(tokenizer), [1], 1)
    spelled, preferred = b"", tokenizer.encode(liked, specials=True) if liked else []
    while sequence.left:
        logits = rng.standard_normal((1, 49152), np.float32)
        logits[0, preferred] += rng.uniform(0, 12, len(preferred)).astype(np.float32)
        token = sample(StepOutput.of(logits), 0, sequence, tokenizer.eos_ids).token
        sequence.tokens.append(token)
        grammar.take(token)
        spelled += tokenizer.token_bytes(token)
        if token in tokenizer.eos_ids or grammar.is_over:
            return spelled.decode("utf-8", "replace"), True
    return spelled.decode("utf-8", "replace"), False


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SCHEMAS, st.sampled_from([0.0, 1.0]), st.integers(0, 99))
def test_noise_becomes_valid_json_in_time(compiler, schema, temperature, seed):
    grammar = compiled(compiler, schema)
    if grammar is None:
        return
    shortest = grammar.way(4096)
    assert shortest is not None
    text, ended = babble(compiler, grammar, len(shortest) + 20, temperature, seed)
    assert ended, text
    jsonschema.validate(json.loads(text), schema, format_checker=None)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    SCHEMAS,
    st.sampled_from([0.0, 1.0]),
    st.integers(0, 99),
    st.booleans(),
    st.sampled_from(["", "</think>", '</think>{"a', "</", "<think>", "<"]),
)
def test_reasoning_is_free_and_ends_in_time_for_the_answer(compiler, schema, temperature, seed, begun, liked):
    grammar = compiled(compiler, schema)
    if grammar is None:
        return
    most = 2 * (grammar.reserve + 12)
    text, ended = babble(compiler, after_thought(compiler, grammar, begun), most, temperature, seed, liked)
    assert ended, text
    thinks = begun or text.startswith(MARKS[0])
    answer = text.partition(MARKS[1])[2] if thinks else text
    jsonschema.validate(json.loads(answer), schema, format_checker=None)


def test_where_there_is_no_room_to_reason_the_answer_begins(compiler):
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
    grammar = compiled(compiler, schema)
    assert grammar is not None
    shortest = grammar.way(4096)
    opening = compiler._tokenizer.encode(MARKS[0], specials=True)[0]
    held = after_thought(compiler, grammar, begun=False)
    assert held.allows(opening) and held.steer(opening, len(shortest or ()) + 1) == (shortest or [0])[0]
    assert after_thought(compiler, grammar.fork(), begun=False).steer(opening, 500) == opening


def test_an_unsupported_keyword_is_named(compiler):
    with pytest.raises(BadRequest, match="uniqueItems"):
        asyncio.run(compiler.compiled(json_grammar({"type": "array", "uniqueItems": True}), "response_format"))


def test_an_answer_ends_with_its_grammar(compiler):
    grammar = asyncio.run(compiler.of_format(ResponseFormat("choice", choices=("yes", "no"))))
    assert babble(compiler, grammar, 20, 1.0, 3)[0] in ("yes", "no")


@pytest.mark.parametrize(
    "schema", [{"type": "number", "exclusiveMinimum": 10, "maximum": 11}, {"type": "integer", "multipleOf": 5}]
)
def test_a_number_ends(compiler, schema):
    """It could go on for ever."""
    for first in ("1", "10.", "10." + 11 * "0", 20 * "5"):
        grammar = compiled(compiler, schema)
        assert grammar is not None
        begun = compiler._tokenizer.encode(first, specials=False)
        if not all(grammar.allows(token) and not grammar.take(token) for token in begun):
            continue
        text, ended = babble(compiler, grammar, 100, 1.0, 1)
        assert ended and len(text) < 32, text
        jsonschema.validate(json.loads(first + text), schema)


def test_draws_within_a_grammar_have_its_share_of_the_models_distribution(compiler):
    """A draw that the grammar forbids is made again: of what is allowed, nothing gets likelier for it."""
    grammar = asyncio.run(compiler.of_format(ResponseFormat("choice", choices=("yes", "no"))))
    logits = np.zeros(49152, np.float32)  # most of the mass is on what may not be said
    logits[grammar.mask()] = -60
    yes, no = (compiler._tokenizer.encode(word, specials=False)[0] for word in ("yes", "no"))
    logits[yes], logits[no] = 8.0, 7.0
    request = GenerationRequest("x", [1], SamplingParams(temperature=1.0), grammar=grammar)
    drawn = []
    for seed in range(1500):
        sequence = Sequence(request, seed, 40, Detokenizer(compiler._tokenizer), [1], 1)
        drawn.append(sample(StepOutput.of(logits[None]), 0, sequence, compiler._tokenizer.eos_ids).token)
    assert set(drawn) == {yes, no}
    assert abs(drawn.count(yes) / len(drawn) - np.e / (1 + np.e)) < 0.04


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (ResponseFormat("regex", pattern="[0-9]{40}"), "1234567890" * 4),
        (ResponseFormat("regex", pattern=r"\d+(\.\d+)*"), "1.3.6.1.4.1.311.21.20"),
        (ResponseFormat("json_schema", schema={"type": "number"}), "12345678901.25"),
        (ResponseFormat("json_schema", schema={"type": "number"}), "1700000000.123"),
        (ResponseFormat("json_schema", schema={"type": "integer"}), "123456789012345678"),
    ],
)
def test_numbers_that_mean_something_are_left_alone(compiler, wanted, said):
    grammar = asyncio.run(compiler.of_format(wanted))
    for token in compiler._tokenizer.encode(said, specials=False):
        assert grammar.steer(token, 200) == token, said
        grammar.take(token)


NODE = {"type": "object", "properties": {"in": {"type": "array", "items": {"$ref": "#"}}}, "required": ["in"]}


def test_what_is_deep_is_closed_in_time(compiler):
    grammar = compiled(compiler, NODE | {"additionalProperties": False})
    assert grammar is not None
    deep = compiler._tokenizer.encode('{"in": [' * 20, specials=False)
    for token in deep:
        grammar.take(token)
    text, ended = babble(compiler, grammar, 60, 0.0, 0)
    assert ended
    assert isinstance(json.loads('{"in": [' * 20 + text), dict)


@pytest.mark.parametrize("pattern", ["^[A-Z][a-z]* [0-9]+$", "^[a-z]{20}-[0-9]{3}$", "^(/[a-z]+)+/$"])
def test_a_pattern_is_gone_through_to_its_end(compiler, pattern):
    schema = {"type": "string", "pattern": pattern}
    grammar = compiled(compiler, schema)
    assert grammar is not None
    assert len(grammar.way(4096) or ()) < 40
    text, ended = babble(compiler, grammar, 60, 1.0, 0)
    assert ended
    jsonschema.validate(json.loads(text), schema)


def test_a_cut_pattern_is_led_to_its_end(compiler):
    grammar = asyncio.run(compiler.of_format(ResponseFormat("regex", pattern=r'"[^"]*"')))
    text, ended = babble(compiler, grammar, 9, 1.0, 1)
    assert ended and text.startswith('"') and text.endswith('"') and text.count('"') == 2


def test_forks_do_not_meet(compiler):
    first = asyncio.run(compiler.of_format(ResponseFormat("regex", pattern="[ab]c")))
    second = first.fork()
    [a, b, c] = (compiler._tokenizer.encode(letter, specials=False)[0] for letter in "abc")
    first.take(a)
    assert first.allows(c) and not first.allows(b)
    assert second.allows(b) and not second.allows(c)


@pytest.fixture(scope="module")
def house(smollm2: Path) -> Iterator[tuple[LocalBackend, Engine]]:
    loader = Loader(LoadOptions(EngineConfig(), 256))
    opened = loader.open(smollm2)
    engine = loader.start(opened)
    backend = LocalBackend(opened.model, always(engine), "m", opened.longest)
    yield backend, engine
    engine.close()
    backend.close()
    loader.close()


async def ask(backend: LocalBackend, wanted: ResponseFormat, **sampling: Any) -> tuple[str, Event]:
    request = ChatRequest(
        "m",
        (Message("user", (Text("Give me an example, as JSON."),)),),
        sampling=SamplingParams(**sampling),
        response_format=wanted,
    )
    events = [event async for event in backend.generate(request)]
    return "".join(e.text for e in events if isinstance(e, TextDelta)), events[-1]


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.lists(SCHEMAS, min_size=8, max_size=8))
def test_the_real_model_keeps_to_schemas(house, schemas):
    async def answers() -> list[tuple[str, Event]]:
        wanted = [ResponseFormat("json_schema", schema=schema) for schema in schemas]
        return await asyncio.gather(
            *(ask(house[0], w, temperature=float(i % 2), seed=i, max_tokens=250) for i, w in enumerate(wanted))
        )

    for schema, (text, end) in zip(schemas, asyncio.run(answers()), strict=True):
        if isinstance(end, Failure):
            assert end.status == 400, end
        else:
            assert isinstance(end, Finish) and end.reason == "stop", text
            jsonschema.validate(json.loads(text), schema)


@pytest.mark.slow
@pytest.mark.parametrize("prompted", [False, True])
def test_a_model_that_reasons_reasons_first(house, monkeypatch, prompted):
    backend, schema = house[0], {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    template = backend._model.template
    monkeypatch.setattr(type(template), "thought_marks", property(lambda self: MARKS))
    if prompted:
        encode = template.encode
        more = backend._model.tokenizer.encode("<think>", specials=True)
        monkeypatch.setattr(template, "encode", lambda *given, **named: [*encode(*given, **named), *more])

    async def events() -> list[Event]:
        request = ChatRequest(
            "m",
            (Message("user", (Text("Is water wet?"),)),),
            sampling=SamplingParams(temperature=0.0, max_tokens=150),
            response_format=ResponseFormat("json_schema", schema=schema | {"additionalProperties": False}),
        )
        return [event async for event in backend.generate(request)]

    came = asyncio.run(events())
    assert isinstance(json.loads("".join(e.text for e in came if isinstance(e, TextDelta)))["ok"], bool)
    thought = "".join(e.text for e in came if isinstance(e, ReasoningDelta))
    assert bool(thought.strip()) == prompted  # this model does not begin to reason by itself


@pytest.mark.slow
def test_a_hostile_schema_stalls_nobody_else(house):
    huge = {"type": "string", "pattern": "^" + "(a?){1,400}" * 6 + "$"}

    async def beside() -> tuple[tuple[str, Event], tuple[str, Event]]:
        hostile = asyncio.create_task(ask(house[0], ResponseFormat("json_schema", schema=huge), temperature=0.0, max_tokens=8))
        await asyncio.sleep(0)
        plain = await asyncio.wait_for(ask(house[0], ResponseFormat(), temperature=0.0, max_tokens=8), 5)
        return plain, await hostile

    (text, end), (_, theirs) = asyncio.run(beside())
    assert text and isinstance(end, Finish)
    assert isinstance(theirs, Finish) or (isinstance(theirs, Failure) and theirs.status == 400)
