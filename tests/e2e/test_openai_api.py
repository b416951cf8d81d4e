"""OpenAI's own SDK against the real server."""

from typing import Any

import openai
import pytest

pytestmark = pytest.mark.slow

FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]
COUNT: Any = [{"role": "user", "content": "Count from one to ten in words."}]


@pytest.fixture
def client(server: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


def greedy(client: openai.OpenAI, messages: Any = FRANCE, **fields: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "local", "messages": messages, "temperature": 0, "max_tokens": 24, **fields}
    )


def test_the_capital_of_france_is_paris(client: openai.OpenAI):
    answer = greedy(client)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop" and answer.object == "chat.completion"
    usage = answer.usage
    assert usage.prompt_tokens > 8 and 0 < usage.completion_tokens <= 24
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_stream_says_the_same_with_one_finish_and_a_last_chunk_of_usage(client: openai.OpenAI):
    whole = greedy(client)
    chunks = list(greedy(client, stream=True, stream_options={"include_usage": True}))
    *body, last = chunks
    assert "".join(c.choices[0].delta.content or "" for c in body) == whole.choices[0].message.content
    finishes = [c.choices[0].finish_reason for c in body if c.choices[0].finish_reason]
    assert finishes == [whole.choices[0].finish_reason]
    assert len(body) > 4, "it comes in pieces"
    assert body[0].choices[0].delta.role == "assistant" and len({c.id for c in chunks}) == 1
    assert not last.choices and last.usage.completion_tokens == whole.usage.completion_tokens
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens


def test_without_include_usage_there_is_none(client: openai.OpenAI):
    assert all(chunk.usage is None and chunk.choices for chunk in greedy(client, stream=True, max_tokens=4))


def test_max_tokens_cuts_with_length(client: openai.OpenAI):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = greedy(client, COUNT, **{"max_tokens": openai.NOT_GIVEN, name: 5})
        assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 5)


def test_n_choices_count_together_and_greedy_ones_are_equal(client: openai.OpenAI):
    answer = greedy(client, n=2, max_tokens=8)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].message.content == answer.choices[1].message.content
    assert answer.usage.completion_tokens == 16
    streamed: dict[int, str] = {0: "", 1: ""}
    finishes = []
    for chunk in greedy(client, n=2, max_tokens=8, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
            finishes += [choice.index] if choice.finish_reason else []
    assert streamed == {c.index: c.message.content for c in answer.choices} and sorted(finishes) == [0, 1]


def test_sampled_choices_and_seeds(client: openai.OpenAI):
    def said(seed: int) -> list[str]:
        answer = greedy(client, COUNT, n=2, max_tokens=12, temperature=1.5, seed=seed)
        return [choice.message.content for choice in answer.choices]

    first = said(7)
    assert said(7) == first and first[0] != first[1]
    assert len({tuple(said(seed)) for seed in (8, 9)} | {tuple(first)}) == 3


def test_logprobs_spell_the_text_and_the_greedy_token_is_the_likeliest(client: openai.OpenAI):
    choice = greedy(client, logprobs=True, top_logprobs=3, max_tokens=8).choices[0]
    entries = choice.logprobs.content
    assert len(entries) == 8
    assert b"".join(bytes(e.bytes) for e in entries).decode() == choice.message.content
    for entry in entries:
        top = [t.logprob for t in entry.top_logprobs]
        assert len(top) == 3 and top == sorted(top, reverse=True) and entry.logprob <= 0
        assert (entry.token, entry.logprob) == (entry.top_logprobs[0].token, top[0])
    streamed = [
        entry.token
        for chunk in greedy(client, logprobs=True, max_tokens=8, stream=True)
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert streamed == [e.token for e in entries]


def test_a_stop_string_ends_the_text_before_it_and_never_leaks(client: openai.OpenAI):
    full = greedy(client, COUNT).choices[0].message.content
    middle = len(full) // 2
    stop = full[middle : middle + 5]
    expected = full[: full.index(stop)]
    answer = greedy(client, COUNT, stop=[stop])
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (expected, "stop")
    pieces = [c.choices[0].delta.content or "" for c in greedy(client, COUNT, stop=stop, stream=True)]
    assert "".join(pieces) == expected


def test_logit_bias_and_ignore_eos(client: openai.OpenAI):
    free = greedy(client)
    assert free.choices[0].finish_reason == "stop" and free.usage.completion_tokens < 24
    forced = greedy(client, extra_body={"ignore_eos": True})
    assert (forced.choices[0].finish_reason, forced.usage.completion_tokens) == ("length", 24)
    shortest = greedy(client, extra_body={"min_tokens": free.usage.completion_tokens + 4})
    assert shortest.usage.completion_tokens >= free.usage.completion_tokens + 4


def test_plain_completions(client: openai.OpenAI):
    def complete(prompt: Any, **fields: Any) -> Any:
        return client.completions.create(**{"model": "local", "prompt": prompt, "temperature": 0, "max_tokens": 6, **fields})

    text = "The capital of France is"
    answer = complete(text)
    assert "Paris" in answer.choices[0].text and answer.object == "text_completion"
    assert "".join(chunk.choices[0].text for chunk in complete(text, stream=True)) == answer.choices[0].text
    assert complete(text, echo=True).choices[0].text == text + answer.choices[0].text
    both = complete([text, "Two plus two equals"])
    assert [choice.index for choice in both.choices] == [0, 1] and both.choices[0].text == answer.choices[0].text
    logprobs = complete(text, logprobs=2).choices[0].logprobs
    assert "".join(logprobs.tokens) == answer.choices[0].text and len(logprobs.top_logprobs[0]) == 2


def test_a_conversation_is_read_whole_be_its_content_text_or_parts(client: openai.OpenAI):
    said = ["You are a helpful assistant.", "My name is Walter.", "Hello Walter.", "What is my name?"]
    roles = ["system", "user", "assistant", "user"]
    plain = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
    parts = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in zip(roles, said, strict=True)]
    answers = [greedy(client, messages, max_tokens=8) for messages in (plain, parts)]
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content
    assert answers[0].usage.prompt_tokens == answers[1].usage.prompt_tokens
    assert greedy(client, plain[:2], max_tokens=1).usage.prompt_tokens < answers[0].usage.prompt_tokens - 10


def test_models_are_listed_and_found(client: openai.OpenAI):
    names = {model.id for model in client.models.list()}
    assert {"local", "auto", "smollm2-135m-instruct"} <= names
    assert client.models.retrieve("local").id == "local"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")
    by_name = greedy(client, model="smollm2-135m-instruct", max_tokens=8)
    assert by_name.choices[0].message.content == greedy(client, max_tokens=8).choices[0].message.content


def test_errors_are_the_sdks_own(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError) as unknown:
        greedy(client, model="gpt-9")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as wrong:
        greedy(client, temperature=9)
    assert wrong.value.param == "temperature" and wrong.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as long:
        greedy(client, [{"role": "user", "content": "word " * 40_000}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        list(greedy(client, [{"role": "user", "content": "word " * 40_000}], stream=True))


def test_every_answer_names_its_request_which_the_ledger_knows(server: Any, client: openai.OpenAI):
    raw = client.chat.completions.with_raw_response.create(model="local", messages=FRANCE, max_tokens=4, temperature=0)
    assert raw.headers["x-baseload-route"] == "smollm2-135m-instruct" and raw.headers["x-baseload-attempts"] == "1"
    status, row, _ = server.call(f"/v1/requests/{raw.headers['x-baseload-request-id']}")
    assert (status, row["status"], row["model_asked"]) == (200, "done", "local")
    attempt = row["attempts"][0]
    assert (attempt["completion_tokens"], attempt["backend"], attempt["finish_reason"]) == (4, "local", "length")
    assert len(row["attempts"]) == 1 and "France" not in str(row)
