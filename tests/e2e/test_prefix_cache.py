"""A prefix that was computed once is not computed again."""

import json
import random
from typing import Any

import pytest

pytestmark = pytest.mark.slow

COMMON = "time year people way day man thing woman life child world school state family student group country"
WORDS = COMMON.split()


def prefix(seed: int, words: int = 512) -> str:
    """As many tokens as words, or more."""
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def ask(server: Any, text: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    status, answer, _ = server.chat(text, max_tokens=6, **fields)
    assert status == 200, answer
    return answer["choices"][0]["message"]["content"], answer["usage"]


def cached(usage: dict[str, Any]) -> int:
    return usage["prompt_tokens_details"]["cached_tokens"]


def test_the_second_request_with_a_prefix_of_512_tokens_finds_it(server: Any):
    shared = prefix(1)
    before = server.metrics()
    _, first = ask(server, f"{shared} What comes first?")
    assert first["prompt_tokens"] >= 512 and cached(first) < 64  # the template's own beginning may be known
    _, second = ask(server, f"{shared} And what comes last?")
    assert cached(second) >= 480
    after = server.metrics()
    hits = after["vllm:prefix_cache_hits_total"] - before["vllm:prefix_cache_hits_total"]
    assert hits == cached(first) + cached(second)


def test_the_same_words_come_out_warm_and_cold(server: Any):
    text = f"{prefix(2, 200)} Say something about this."
    cold, first = ask(server, text)
    warm, second = ask(server, text)
    assert cached(second) > 150 > cached(first)
    assert warm == cold


def test_another_beginning_is_not_mixed_up_with_it(server: Any):
    shared = prefix(3, 200)
    ask(server, shared)
    _, usage = ask(server, f"Now {shared}")
    assert cached(usage) < 64


def test_a_stream_tells_it_too(server: Any):
    text = prefix(4, 200)
    ask(server, text)
    status, page, _ = server.chat(text, stream=True, stream_options={"include_usage": True}, max_tokens=3)
    chunks = [json.loads(line[6:]) for line in page.splitlines() if line.startswith("data: {")]
    assert status == 200 and cached(chunks[-1]["usage"]) > 150
