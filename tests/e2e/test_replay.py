"""Receipts: what a busy server has answered is made again alone, bit for bit; and what has changed is named.

`REPLAYS=100` in the environment makes the first test as large as docs/receipts.md tells of it.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from baseload.ledger.ledger import open_for_reading
from baseload.ledger.report import request as row_of

from .conftest import Server, Start, _environment

N = int(os.environ.get("REPLAYS", "24"))
KEEP = "[ledger]\nkeep_text = true\n"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "population": {"type": "integer"}}, "required": ["city"]}
THEMES = ("rain", "the harbour", "bread", "a lost key", "winter", "two rivers", "an old map", "the night train")


def body(i: int) -> dict[str, Any]:
    """Greedy, sampled, sampled with a seed, sampled to a schema: in turn, of several lengths, some with two choices."""
    found: dict[str, Any] = {"model": "local", "max_tokens": 24 + 8 * (i % 4), "temperature": 0.8 if i % 4 else 0}
    found["messages"] = [{"role": "user", "content": f"Write {i + 1} lines about {THEMES[i % len(THEMES)]}."}]
    if i % 4 == 2:
        found["seed"] = i - 50
    if i % 4 == 3:
        found["messages"][0]["content"] = f"Name a city in JSON, one with {i} letters or fewer."
        found["response_format"] = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
    if i % 5 == 1:
        found |= {"n": 2, "top_p": 0.9, "frequency_penalty": 0.3}
    return found


def ask(server: Server, given: dict[str, Any]) -> str:
    status, answer, headers = server.call("/v1/chat/completions", given)
    assert status == 200, answer
    name = str(headers["x-baseload-request-id"])
    assert server.call(f"/v1/requests/{name}")[0] == 200  # its rows are on the disk then
    return name


def replay(server: Server, *words: str, config: str | None = None) -> tuple[int, list[dict[str, Any]]]:
    options = ["--json"]
    if config is not None:
        path = server.home / "other.toml"
        path.write_text((server.home / "config.toml").read_text().replace("[engine]\n", f"[engine]\n{config}"))
        options += ["--config", str(path)]
    command = [sys.executable, "-m", "baseload.cli.main", "replay", *words, *options]
    env = {k: v for k, v in _environment(server.home).items() if k != "WATCH_SOCKETS"}
    (server.home / "sitecustomize.py").unlink(missing_ok=True)
    done = subprocess.run(command, cwd=server.home, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode in (0, 1) and done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module")
def keeping(start: Start) -> Server:
    return start(config=KEEP)


def test_answers_of_a_busy_server_come_again_bit_for_bit(keeping: Server):
    with ThreadPoolExecutor(12) as many:
        ids = list(many.map(lambda i: ask(keeping, body(i)), range(N)))
    books = open_for_reading(f"sqlite:///{keeping.home}/ledger.db")
    rows = [(row_of(books, name) or {})["attempts"][0] for name in ids]
    assert all(row[f"{name}_digest"] for row in rows for name in ("model", "template", "kernels", "settings", "tokens"))
    assert [row["seed"] is not None for row in rows] == [i % 4 != 0 for i in range(N)]
    assert [row["seed"] for i, row in enumerate(rows) if i % 4 == 2] == [i - 50 for i in range(N) if i % 4 == 2]
    code, found = replay(keeping, *ids)
    assert [r["verdict"] for r in found] == ["same"] * N, [r for r in found if r["verdict"] != "same"]
    assert code == 0 and sum(r["tokens"] for r in found) == sum(row["completion_tokens"] for row in rows)


def test_what_has_changed_is_named_and_nothing_is_run(keeping: Server, smollm2: Path, tmp_path: Path):
    name = ask(keeping, body(1))
    changed = bytearray(smollm2.read_bytes())
    changed[-1] ^= 1
    other = tmp_path / "model.gguf"
    other.write_bytes(changed)
    cases = {
        "model": replay(keeping, name, "--model", str(other)),
        "kernels": replay(keeping, name, config='isa = "portable"\n'),
        "settings": replay(keeping, name, config="max_output = 7\n"),
    }
    for digest, (code, [found]) in cases.items():
        assert (code, found["verdict"], list(found["changed"])) == (1, "refused", [digest])
        then, now = found["changed"][digest]
        assert then != now and then in found["why"] and now in found["why"]


def test_a_text_that_was_not_kept_is_given_again(start: Start, tmp_path: Path):
    server = start()
    given = body(2)
    name = ask(server, given)
    path = tmp_path / "asked.json"
    path.write_text(json.dumps(given))
    code, [found] = replay(server, name, "--text", str(path))
    assert (code, found["verdict"]) == (0, "same")
    path.write_text(json.dumps(given | {"messages": [{"role": "user", "content": "Something else."}]}))
    code, [found] = replay(server, name, "--text", str(path))
    assert (code, found["verdict"]) == (1, "different") and "not what was asked" in found["why"]
    path.write_text(json.dumps(given | {"temperature": 0.7}))
    code, [found] = replay(server, name, "--text", str(path))
    assert (code, list(found["changed"])) == (1, ["settings"])
    texts = Path(server.home / "ledger.db").read_bytes() + server.log.encode()
    assert THEMES[2].encode() not in texts
