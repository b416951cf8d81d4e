"""200 tasks through `auto`: as many are done as by the supplier alone, for less; and what the report says of it is true."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import pytest
from typer.testing import CliRunner

from baseload.benchmarks.routed_tasks import Piece, pieces
from baseload.cli.main import build

from .stand_in import KEY, Asked, Reply, StandIn, stand_in

pytestmark = pytest.mark.slow

WORK = pieces()
AT_ONCE = 16


def knows(wrong_every: int = 0) -> Any:
    """A supplier that knows every answer; each n-th task it gets wrong, always the same ones."""
    by_prompt = {piece.prompt: (n, piece) for n, piece in enumerate(WORK)}

    def answer(asked: Asked) -> Reply:
        said = next(text for role, text in asked.said if role == "user")
        n, piece = by_prompt[said]
        if wrong_every and n % wrong_every == 0:
            return Reply("I do not know.")
        return Reply(piece.answer) if isinstance(piece.answer, str) else Reply("", piece.answer)

    return answer


@contextmanager
def house(start: Any, supplier: StandIn) -> Iterator[Any]:
    models = '[{id = "gpt-4o-mini", context_length = 128000, tools = true}]'
    where = f'base_url = "{supplier.url}/v1"\napi_key_env = "STAND_IN_KEY"\nprice_provider = "openai"\n'
    table = f"[suppliers.acme]\n{where}models = {models}\n"
    router = '[router]\nallowed_suppliers = ["acme"]\nladder = ["acme/gpt-4o-mini"]\ncode_checks = true\n'
    server = start(config=router + table, env={"STAND_IN_KEY": KEY})
    try:
        yield server
    finally:
        server.stop()


async def done(server: Any, model: str) -> list[tuple[Piece, int, Any, str]]:
    """(piece, status, answer, request id) of every piece of work."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(session: aiohttp.ClientSession, piece: Piece) -> tuple[Piece, int, Any, str]:
        async with gate, session.post(f"{server.url}/v1/chat/completions", json=piece.body(model)) as response:
            return piece, response.status, await response.json(), response.headers["x-baseload-request-id"]

    async with aiohttp.ClientSession() as session:
        return await asyncio.gather(*(one(session, piece) for piece in WORK))


def report(server: Any, request: str) -> Any:
    server.call(f"/v1/requests/{request}")  # all rows up to its own are on the disk then
    ran = CliRunner().invoke(build("route"), ["route", "report", "--json", "--db", str(server.home / "ledger.db")])
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout)


def test_as_much_is_done_as_by_the_supplier_alone_for_less(start: Any):
    with stand_in(knows()) as supplier, house(start, supplier) as server:
        alone = asyncio.run(done(server, "acme/gpt-4o-mini"))
        bought_alone = len(supplier.asked)
        supplier.asked.clear()
        routed = asyncio.run(done(server, "auto"))
        assert [status for _, status, _, _ in alone] == [status for _, status, _, _ in routed] == [200] * len(WORK)
        audited = [one for n, one in enumerate(routed) if n % 4 == 0]
        for piece, _, answer, request in audited:
            right = piece.is_right(answer["choices"][0]["message"])
            status, *_ = server.call("/v1/feedback", {"request_id": request, "accepted": right})
            assert status == 200
        found = report(server, routed[-1][3])
        _, said, _ = server.call(f"/v1/requests/{routed[0][3]}")
    kinds = Counter(piece.kind for piece in WORK)
    kept_local = found["routes"].get("smollm2-135m-instruct", 0)
    assert found["requests"] == len(WORK) and kept_local + found["routes"]["acme/gpt-4o-mini"] == len(WORK)
    assert len(supplier.asked) == len(WORK) - kept_local < bought_alone == len(WORK)
    escalated = Counter(next(p.kind for p in WORK if ("user", p.prompt) in asked.said) for asked in supplier.asked)
    assert 1 - escalated["extract"] / kinds["extract"] >= 0.6
    assert found["unaccepted"] == 0
    assert found["supplier_usd"] == pytest.approx(len(supplier.asked) * (40 * 0.15 + 7 * 0.6) / 1e6)
    # The report's wrong accepts are those that the audit found among the kept ones.
    wrong = [p for p, _, answer, r in audited if not p.is_right(answer["choices"][0]["message"])]
    assert found["audited"]["wrong"] == len(wrong) <= found["audited"]["kept"] <= len(audited)
    assert said["attempts"]


def test_with_a_supplier_that_is_sometimes_wrong_the_report_tells_the_truth(start: Any):
    with stand_in(knows(wrong_every=10)) as supplier, house(start, supplier) as server:
        routed = asyncio.run(done(server, "auto"))
        found = report(server, routed[-1][3])
    failed = [answer for _, status, answer, _ in routed if status != 200]
    assert failed and all(answer["error"]["code"] == "checks_failed" for answer in failed)
    assert found["unaccepted"] == len(failed) and found["requests"] == len(WORK)
    assert found["supplier_usd"] > 0
