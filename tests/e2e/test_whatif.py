"""A running server's books, asked what if: the policy that ran gives the bill that was recorded; and the local answers, failed
ones too, are made again from their receipts.

`WHATIF=200 pytest -s` makes it as large as docs/receipts.md tells of it, and prints what the commands say.
"""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from typer.testing import CliRunner

from baseload.benchmarks.routed_tasks import pieces
from baseload.cli.main import build

from .stand_in import KEY, stand_in
from .test_routing import knows

N = int(os.environ.get("WHATIF", "24"))
HARDWARE = str(Path(__file__).parents[2] / "configs/hardware/example-workstation.toml")
CONFIG = """[ledger]
keep_text = true
[router]
allowed_suppliers = ["acme"]
ladder = ["acme/gpt-4o-mini"]
code_checks = true
shadow = 0.25
[suppliers.acme]
base_url = "{url}/v1"
api_key_env = "STAND_IN_KEY"
price_provider = "openai"
models = [
    {{id = "gpt-4o-mini", context_length = 128000, tools = true}},
    {{id = "gpt-4.1", context_length = 128000, tools = true}},
]
"""


async def asked(server: Any) -> list[str]:
    """The request ids of every n-th of the routed tasks, eight at once."""
    gate, work = asyncio.Semaphore(8), pieces()
    some = [work[i * len(work) // N] for i in range(N)]

    async with aiohttp.ClientSession() as session:

        async def one(body: Any) -> str:
            async with gate, session.post(f"{server.url}/v1/chat/completions", json=body) as answer:
                assert answer.status == 200, await answer.text()
                return answer.headers["x-baseload-request-id"]

        return list(await asyncio.gather(*(one(piece.body("auto")) for piece in some)))


def test_the_policy_that_ran_gives_the_recorded_bill(start: Any, monkeypatch: pytest.MonkeyPatch):
    with stand_in(knows()) as supplier:
        server = start(config=CONFIG.format(url=supplier.url), env={"STAND_IN_KEY": KEY})
        ids = asyncio.run(asked(server))
        assert server.stop() == 0
    home = server.home
    monkeypatch.setenv("BASELOAD_HOME", str(home))
    monkeypatch.chdir(home)
    same, alone, other = home / "config.toml", home / "alone.toml", home / "other.toml"
    alone.write_text(same.read_text().replace("[router]", "[router]\nair_gap = true"))
    other.write_text(same.read_text().replace("shadow = 0.25", "").replace('["acme/gpt-4o-mini"]', '["acme/gpt-4.1"]'))

    def ran(*words: str | Path) -> str:
        done = CliRunner().invoke(build(str(words[0])), list(map(str, words)))
        print(f"$ baseload {' '.join(str(word).replace(str(home) + '/', '') for word in words)}\n{done.output}")
        assert done.exit_code == 0, done.output
        return done.stdout

    whatif: Callable[..., Any] = lambda *words: json.loads(ran("ledger", "whatif", *words, "--json"))  # noqa: E731
    found = whatif("--policy", same, "--hardware", HARDWARE)
    assert found["then"] == found["recorded"] and found["unknown"] == {}
    assert found["recorded"]["supplier_usd"] == pytest.approx(len(supplier.asked) * (40 * 0.15 + 7 * 0.6) / 1e6, abs=1e-12)
    assert found["recorded"]["tasks"] == found["recorded"]["accepted"] == N and found["recorded"]["unpriced"] == 0
    kept = whatif("--policy", alone)
    assert kept["then"]["supplier_usd"] == 0 and 0 < kept["then"]["accepted"] < N and kept["unknown"] == {}
    assert kept["then"]["accepted"] == found["recorded"]["routes"]["smollm2-135m-instruct"]
    dearer = whatif("--policy", other)
    assert dearer["then"]["unknown"] == N - kept["then"]["accepted"] and "it was not asked" in next(iter(dearer["unknown"]))
    if "WHATIF" in os.environ:
        ran("ledger", "whatif", "--policy", same, "--hardware", HARDWARE)
        ran("ledger", "whatif", "--policy", alone, "--hardware", HARDWARE)
        ran("ledger", "whatif", "--policy", other, "--hardware", HARDWARE)
        ran("ledger", "whatif", "--model", "acme/gpt-4.1", "--hardware", HARDWARE)
    proven = json.loads(ran("replay", *ids[: 8 if N <= 24 else N], "--json"))
    assert {one["verdict"] for one in proven} == {"same"}
