"""A bad request costs only itself: the right status, OpenAI's error, and a good one beside it says what it always says."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

pytestmark = pytest.mark.slow

CASES = [json.loads(line) for line in (Path(__file__).parent / "bad_requests.jsonl").read_text("utf-8").splitlines()]
GOOD = {"model": "local", "messages": [{"role": "user", "content": "Name a colour."}], "temperature": 0, "max_tokens": 4}
ANSWER_S = 15.0
LEAKS = ("Traceback", 'File "', "/work/", "/home/", "/tmp/", "site-packages", ".py")


def payload(case: dict[str, Any]) -> bytes:
    if "raw" in case:
        return case["raw"].encode()
    if "raw_hex" in case:
        return bytes.fromhex(case["raw_hex"])
    if "nested" in case:
        opening, closing, depth = case["nested"]
        return ('{"model": "local", "messages": ' + opening * depth + "1" + closing * depth + "}").encode()
    body = {key: value for key, value in GOOD.items() if key not in case.get("drop", ())} | case.get("body", {})
    if "words" in case:
        body["messages"] = [{"role": "user", "content": "word " * case["words"]}]
    if "repeat_model" in case:
        body["model"] = "m" * case["repeat_model"]
    return json.dumps(body).encode()


async def ask(session: aiohttp.ClientSession, base: str, case: dict[str, Any]) -> tuple[int, Any, str]:
    method, path = case.get("method", "POST"), case.get("path", "/v1/chat/completions")
    headers = {"content-type": "application/json"} | case.get("headers", {})
    data = None if method == "GET" else payload(case)
    url = URL(base + path, encoded=True)  # or the client would tidy the path up
    async with session.request(method, url, data=data, headers=headers) as response:
        text = await response.text()
        return response.status, json.loads(text), text


async def good(session: aiohttp.ClientSession, base: str) -> str:
    async with session.post(f"{base}/v1/chat/completions", json=GOOD) as response:
        assert response.status == 200, await response.text()
        return (await response.json())["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def expected(shared: Any) -> str:
    """What the good request says when it is alone."""
    return shared.call("/v1/chat/completions", GOOD)[1]["choices"][0]["message"]["content"]


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
async def test_a_bad_request_costs_only_itself(shared: Any, expected: str, case: dict[str, Any]):
    limit = aiohttp.ClientTimeout(total=120)
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(timeout=limit, connector=connector) as session:
        beside = asyncio.create_task(good(session, shared.url))
        began = time.monotonic()
        status, answer, text = await ask(session, shared.url, case)
        took = time.monotonic() - began
        assert await beside == expected
    assert status in case["expect"], text[:500]
    error = answer["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["type"]
    assert len(text) < 8192 and not [leak for leak in LEAKS if leak in text], text
    assert took < ANSWER_S
    if "param" in case:
        assert error["param"] == case["param"]
    if "code" in case:
        assert error["code"] == case["code"]


def test_the_server_is_as_before_and_has_logged_no_trace(shared: Any):
    shared.wait_idle()
    assert shared.metrics()["baseload_engine_alive"] == 1
    assert "Traceback" not in shared.log


def test_the_corpus_is_well_formed():
    assert len({case["id"] for case in CASES}) == len(CASES) >= 60
