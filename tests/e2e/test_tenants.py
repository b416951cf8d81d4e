"""Two keys on one server: neither finds what the other has had computed, in memory or on disk, and both get the same text."""

from typing import Any

import pytest

from baseload.ledger import keys

from .test_budgets import ledger_of

pytestmark = pytest.mark.slow
PROMPT = "Repeat after me, word for word: " + "the quick brown fox jumps over the lazy dog and runs on; " * 12


def asked(server: Any, secret: str) -> tuple[str, int]:
    """(text, prompt tokens that were not computed again)"""
    server.headers["authorization"] = f"Bearer {secret}"
    status, body, _ = server.chat(PROMPT, max_tokens=6)
    assert status == 200, body
    return body["choices"][0]["message"]["content"], body["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_two_keys_share_no_page(start: Any):
    server = start()
    engine = ledger_of(server.home)
    (_, mine), (_, theirs), (_, chief) = (keys.create(engine, name, scopes) for name, scopes in
                                          (("mine", ()), ("theirs", ()), ("chief", ("admin",))))  # fmt: skip
    while server.call("/v1/models")[0] != 401:
        pass
    first, second = asked(server, mine), asked(server, mine)
    assert first[1] == 0 and second[1] > 100 and first[0] == second[0]
    server.headers["authorization"] = f"Bearer {chief}"
    before = server.metrics()["vllm:prefix_cache_hits_total"]
    assert asked(server, theirs) == first
    server.headers["authorization"] = f"Bearer {chief}"
    assert server.wait_idle()["vllm:prefix_cache_hits_total"] == before
    assert asked(server, theirs)[1] == second[1]
    assert asked(server, chief)[1] == 0

    def hits_of_a_vector(secret: str) -> float:
        server.headers["authorization"] = f"Bearer {chief}"
        before = server.metrics()["vllm:prefix_cache_hits_total"]
        server.headers["authorization"] = f"Bearer {secret}"
        assert server.call("/v1/embeddings", {"model": "smollm2-135m-instruct", "input": PROMPT})[0] == 200
        server.headers["authorization"] = f"Bearer {chief}"
        return server.wait_idle()["vllm:prefix_cache_hits_total"] - before

    assert [hits_of_a_vector(mine) > 0 for _ in range(2)] == [False, True] and hits_of_a_vector(theirs) == 0
    assert server.stop() == 0

    again = start(home=server.home)  # with their pages on disk
    (_, newcomer) = keys.create(engine, "newcomer")
    again.headers["authorization"] = f"Bearer {newcomer}"
    while again.call("/v1/models")[0] != 200:
        pass
    assert asked(again, newcomer) == first
    assert asked(again, mine)[1] > 0
