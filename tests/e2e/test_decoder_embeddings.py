"""Vectors of a model that chats, from the running server: the same engine, pages and prefixes as its answers."""

import numpy as np

from baseload.runtime.models.model_file import load_model

TEXTS = [
    "The harbour was full of fishing boats at noon.",
    "At midday many boats for fishing lay in the port.",
    "A function that returns the sum of two integers in Python.",
]


def vectors(server, texts, path="/v1/embeddings") -> np.ndarray:
    status, body, _ = server.call(path, {"model": "smollm2-135m-instruct", "input": texts})
    assert status == 200, body
    return np.array([d["embedding"] for d in body["data"]] if path == "/v1/embeddings" else body["embeddings"])


def test_what_is_alike_is_near_and_company_changes_nothing(server, smollm2):
    before = server.metrics()
    together = vectors(server, TEXTS)
    assert together.shape == (3, 576) and np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert together[0] @ together[1] > together[0] @ together[2]
    for text, vector in zip(TEXTS, together, strict=True):  # alone, and from a prefix that is known by now
        assert (vectors(server, text)[0] == vector).all()
    tokenizer = load_model(smollm2).tokenizer
    ids = [tokenizer.encode(text, specials=False) for text in TEXTS]
    assert (vectors(server, ids) == together).all()
    assert (vectors(server, TEXTS, "/api/embed") == together).all()
    after = server.wait_idle()
    counted = "vllm:prompt_tokens_total"
    read = sum(after[name] - before.get(name, 0) for name in after if name.startswith(counted))
    assert read == 4 * sum(map(len, ids))


def test_a_long_text_in_chunks_among_answers(server):
    text = " ".join(f"Line {i}: the tide rose by {i % 7} feet." for i in range(300))
    alone = vectors(server, text)
    status, body, _ = server.call("/v1/embeddings", {"model": "smollm2-135m-instruct", "input": [text] * 3 + TEXTS})
    assert status == 200 and body["usage"]["prompt_tokens"] > 9000
    assert all((np.array(d["embedding"]) == alone[0]).all() for d in body["data"][:3])


def test_documents_are_ranked_and_the_answer_says_by_what(server):
    ask = {"model": "smollm2-135m-instruct", "query": TEXTS[0], "documents": [TEXTS[2], TEXTS[1]]}
    status, body, _ = server.call("/v1/rerank", ask)
    assert status == 200 and body["method"] == "embeddings" and body["results"][0]["index"] == 1


def test_what_cannot_be_read_is_refused(server):
    too_long, _, _ = server.call("/v1/embeddings", {"model": "smollm2-135m-instruct", "input": "word " * 9000})
    unknown, body, _ = server.call("/v1/embeddings", {"model": "smollm2-135m-instruct", "input": [[70000]]})
    assert (too_long, unknown) == (400, 400) and "vocabulary" in body["error"]["message"]
    assert [m["id"] for m in server.call("/v1/models")[1]["data"]].count("smollm2-135m-instruct") == 1
