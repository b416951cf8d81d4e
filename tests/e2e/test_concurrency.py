"""Many clients at once get what each would get alone."""

import asyncio
import json
import random
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

pytestmark = pytest.mark.slow

CLIENTS = 64
NEAR_TIE = 1e-3  # nats between the two likeliest tokens: torch sums in another order for another batch, which may swap them
NOUNS = "rivers bread clocks whales paper bridges snow trains maps bees salt kites glass tea moss bells"
TOPICS = NOUNS.split()


@dataclass
class Answer:
    text: str = ""
    finishes: list[str] = field(default_factory=list)
    done: int = 0
    errors: list[Any] = field(default_factory=list)


def bodies() -> list[dict[str, Any]]:
    """Requests of mixed lengths, in and out; some share a beginning."""
    source = random.Random(5)
    made = []
    for n in range(CLIENTS):
        topic = source.choice(TOPICS)
        context = " ".join(source.choices(TOPICS, k=source.choice((0, 5, 20, 60))))
        content = f"{context}\nTell me about {topic}, point {n}."
        made.append({"messages": [{"role": "user", "content": content}], "max_tokens": source.randint(1, 12)})
    return [{"model": "local", "temperature": 0, "ignore_eos": n % 3 == 0, **body} for n, body in enumerate(made)]


async def stream(session: aiohttp.ClientSession, body: dict[str, Any]) -> Answer:
    answer = Answer()
    async with session.post("/v1/chat/completions", json=body | {"stream": True}) as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            data = line.removeprefix(b"data:").strip()
            if not line.startswith(b"data:"):
                continue
            if data == b"[DONE]":
                answer.done += 1
                continue
            chunk = json.loads(data)
            answer.errors += [chunk["error"]] if "error" in chunk else []
            for choice in chunk.get("choices", ()):
                answer.text += choice["delta"].get("content") or ""
                answer.finishes += [choice["finish_reason"]] if choice["finish_reason"] else []
    return answer


async def top_two_gap(session: aiohttp.ClientSession, body: dict[str, Any], alone: str, together: str) -> float:
    """How far apart the two likeliest tokens are where the two texts part."""
    async with session.post("/v1/chat/completions", json=body | {"logprobs": True, "top_logprobs": 2}) as response:
        entries = (await response.json())["choices"][0]["logprobs"]["content"]
    said = ""
    for entry in entries:
        said += bytes(entry["bytes"]).decode("utf-8", "replace")
        if not together.startswith(said) or said == alone:
            first, second = entry["top_logprobs"]
            return first["logprob"] - second["logprob"]
    return float("inf")


async def test_64_streams_end_once_and_say_what_each_says_alone(server: Any, record_property: Any):
    asked = bodies()
    limit = aiohttp.ClientTimeout(total=240)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(server.url, timeout=limit, connector=connector) as session:
        together = await asyncio.gather(*(stream(session, body) for body in asked))
        for answer in together:
            assert (len(answer.finishes), answer.done, answer.errors) == (1, 1, []), answer
        alone = [await stream(session, body) for body in asked]
        ties = []
        for body, one, other in zip(asked, alone, together, strict=True):
            if one.text != other.text:
                gap = await top_two_gap(session, body, one.text, other.text)
                assert gap < NEAR_TIE, f"{one.text!r} alone, {other.text!r} in company, {gap:.4f} apart: {body}"
                ties.append(gap)
            else:
                assert one.finishes == other.finishes
    record_property("near_ties", ties)
    print(f"{len(ties)} of {CLIENTS} answers differ at a near tie (gaps {ties})")
    server.wait_idle()


async def test_a_seeded_answer_does_not_depend_on_the_company(server: Any):
    ask = {"model": "local", "temperature": 1.2, "seed": 11, "max_tokens": 10}
    body = ask | {"messages": [{"role": "user", "content": "Invent a name for a boat."}]}
    others = [ask | {"seed": n, "messages": [{"role": "user", "content": f"Invent a name for boat {n}."}]} for n in range(6)]
    async with aiohttp.ClientSession(server.url) as session:
        alone = await stream(session, body)
        company = await asyncio.gather(stream(session, body), *(stream(session, other) for other in others))
    assert company[0].text == alone.text
    assert len({answer.text for answer in company}) > 1
