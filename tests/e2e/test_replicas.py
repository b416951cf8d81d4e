"""Three real servers behind a fourth: one of them killed under load, and how much of their caches a front loses."""

import asyncio
import json
import random
from dataclasses import dataclass

import httpx2
import pytest

pytestmark = pytest.mark.slow

POOLED = "pooled"


@dataclass
class Heard:
    """What a client got."""

    request_id: str = ""
    words: int = 0
    error: str = ""
    whole: bool = False


def front_of(*urls: str) -> str:
    """The configuration of a server that stands in front of others."""
    listed = ", ".join(f'"{url}/v1"' for url in urls)
    names = f'model = "{POOLED}"\nserved_as = "local"\n'
    return f"[[replicas]]\n{names}base_urls = [{listed}]\ncontext_length = 2048\npatience_s = 60.0\n"


@pytest.fixture
def house(start):
    """Three engines and the front before them: (front, [engines])."""
    engines = [start(env={"BASELOAD_ENGINE__THREADS": "1"}) for _ in range(3)]
    return start(config=front_of(*(one.url for one in engines))), engines


def ask(text: str, system: str = "", n: int = 16) -> dict[str, object]:
    said = [{"role": "system", "content": system}] if system else []
    messages = [*said, {"role": "user", "content": text}]
    return {"model": POOLED, "messages": messages, "max_tokens": n, "temperature": 0, "stream": True, "ignore_eos": True}


async def listen(client: httpx2.AsyncClient, body: dict[str, object], heard: Heard) -> Heard:
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        heard.request_id = answer.headers["x-baseload-request-id"]
        async for line in answer.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                heard.whole = not heard.error
                continue
            chunk = json.loads(line[6:])
            heard.error = chunk.get("error", {}).get("message", heard.error)
            heard.words += any(c["delta"].get("content") for c in chunk.get("choices", []))
    return heard


async def test_killing_one_of_three_loses_nothing_that_has_not_begun(house):
    front, engines = house
    heard = [Heard() for _ in range(32)]
    async with httpx2.AsyncClient(base_url=front.url, timeout=240, limits=httpx2.Limits(max_connections=64)) as client:
        tasks = [asyncio.create_task(listen(client, ask(f"Count from {n}. " * 20, n=32), heard[n])) for n in range(32)]
        while sum(h.words > 0 for h in heard) < 8:  # some have begun, others have not
            await asyncio.sleep(0.01)
        victim = engines[0]
        victim.process.kill()
        begun = [h.words > 0 for h in heard]
        await asyncio.gather(*tasks)
    assert all(h.whole or h.error for h in heard), "nothing hangs, nothing ends without a word about it"
    lost = [h for h, had in zip(heard, begun, strict=True) if not h.whole and not had and not h.words]
    assert not lost, "what had not begun was answered by another"
    assert all(h.words for h in heard if h.error), "an error stands only where words had come"
    assert any(h.error for h in heard) or sum(begun) < 32
    rows = [front.call(f"/v1/requests/{h.request_id}")[1] for h in heard]
    assert [row["status"] for row in rows] == ["failed" if h.error else "done" for h in heard]
    assert all(len(row["attempts"]) == 1 and row["attempts"][0]["error"] == (row["error_code"]) for row in rows)
    assert all(row["attempts"][0]["device_seconds"] > 0 for row in rows if row["status"] == "done")
    listed = {r["name"]: r["state"] for r in front.call("/v1/replicas")[1]["data"]}
    assert sorted(listed.values()) == ["down", "up", "up"]
    assert listed[victim.url.removeprefix("http://")] == "down"
    assert front.call("/health")[1]["replicas"] == [{"model": POOLED, "up": 2, "of": 3}] and front.call("/ready")[0] == 200


async def hit_rate(front, engines) -> float:
    """Of the prompt tokens of 96 requests with six beginnings in common, six at a time, the share that stood in a cache."""
    words = random.Random(7)
    trees = ("ash", "birch", "cedar", "elm", "fir", "oak", "pine")
    lore = [" ".join(words.choices(trees, k=300)) for _ in range(6)]
    asked = [ask(f"Question {n}?", lore[n % 6], n=4) for n in range(96)]
    words.shuffle(asked)
    gate = asyncio.Semaphore(6)

    async def one(client: httpx2.AsyncClient, body: dict[str, object]) -> Heard:
        async with gate:
            return await listen(client, body, Heard())

    async with httpx2.AsyncClient(base_url=front.url, timeout=240) as client:
        assert all(heard.whole for heard in await asyncio.gather(*(one(client, body) for body in asked)))
    seen = [engine.metrics() for engine in engines]
    assert all(m["vllm:prefix_cache_queries_total"] for m in seen), "each has its part of the work"
    return sum(m["vllm:prefix_cache_hits_total"] for m in seen) / sum(m["vllm:prefix_cache_queries_total"] for m in seen)


async def test_three_engines_know_nearly_as_much_as_one(house, start):
    single = start()
    of_one = await hit_rate(start(config=front_of(single.url)), [single])
    of_three = await hit_rate(*house)
    print(f"prefix hit rate: {of_three:.3f} of three, {of_one:.3f} of one")
    assert of_three >= 0.9 * of_one > 0
