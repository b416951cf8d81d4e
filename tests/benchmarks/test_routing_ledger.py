"""Learning from the house's own traffic: what is known of both sides, as often as it occurs, and a refusal of too little."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from baseload.benchmarks.routing_ledger import of_ledger
from baseload.cli.main import build
from baseload.ledger.ledger import Ledger
from baseload.ledger.rows import AttemptRow, OutcomeRow, RequestRow, TextRow
from baseload.router.forecaster import AFTER, BEFORE
from baseload.router.shadow import drawn
from baseload.wire import neutral
from baseload.wire.chat import ChatRequest, Extras, Message, Text
from baseload.wire.errors import BadRequest

HARD, EASY = "prove the theorem by a lemma", "name a colour and greet it"
SHARE = 0.6
NOW = time.time()


def add(books: Ledger, n: int, *, hard: bool, text: bool = True, shadow: float = SHARE, judged: bool = True) -> None:
    """A hard request is escalated and the supplier right; an easy one kept, and a supplier asked too where the lot says so."""
    name = f"r{n}"
    asked = ChatRequest("auto", (Message("user", (Text(f"{HARD if hard else EASY} {n}"),)),), extras=Extras(task="t"))
    books.add(
        RequestRow(name, NOW + n, "openai_chat", "auto", "x", {"mode": "auto"}, "done", finished_ts=NOW + n, task_class="t")
    )
    books.add(AttemptRow(f"{name}a", name, 0, "local", "small", NOW + n, accepted=not hard))
    if judged:
        books.add(OutcomeRow(name, f"{name}a", "schema", not hard, ts=NOW + n))
    books.add(OutcomeRow(name, f"{name}a", "confidence", False, ts=NOW + n))  # an opinion, no outcome
    if hard or drawn(name) < shadow:
        books.add(
            AttemptRow(f"{name}b", name, 1, "acme", "acme/big", NOW + n, role="answer" if hard else "shadow", accepted=hard)
        )
        books.add(OutcomeRow(name, f"{name}b", "schema", True, ts=NOW + n))
    if text:
        books.add(TextRow(name, name, NOW + n, neutral.encode(asked)))
        books.add(TextRow(f"{name}a", name, NOW + n, None, [{"text": "no idea" if hard else "red", "tokens": None}]))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BASELOAD_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def books_of(home: Path) -> Ledger:
    return Ledger.open(f"sqlite:///{home}/ledger.db", keep_text=True)


def train(*words: str) -> Any:
    return CliRunner().invoke(build("route"), ["route", "train", "--embed", "none", *words])


def test_wrong_local_answers_are_as_frequent_as_in_the_traffic(home: Path):
    books = books_of(home)
    for n in range(400):
        add(books, n, hard=n % 4 == 0)
    books.flush()
    found = of_ledger(books.engine, 0)
    assert found.weak.mean() == pytest.approx(0.75, abs=0.06)  # and not 1 - 100 / 280, as all escalated ones would make it
    assert len(found) == pytest.approx(400 * SHARE, abs=40)
    assert (found.left_out or {})["escalated, and not of the share that is drawn"] == pytest.approx(40, abs=15)
    assert (found.strong == 1).all() and set(found.groups or ()) == {"t"} and "red" in (found.responses or [])
    assert all((HARD in prompt) == (weak == 0) for prompt, weak in zip(found.prompts, found.weak, strict=True))
    books.close()


def test_too_few_are_refused_with_what_was_left_out(home: Path):
    books = books_of(home)
    for n in range(40):
        add(books, n, hard=n % 4 == 0, text=n % 2 == 0, judged=n % 8 != 2)
    for n in range(40, 60):
        add(books, n, hard=False, shadow=0.0)
    books.flush()
    with pytest.raises(BadRequest) as refused:
        of_ledger(books.engine, 0)
    told = refused.value.message
    for part in (
        "50 are needed",
        "20 whose text was not kept",
        "5 whose local answer nobody judged",
        "for which no supplier was asked",
    ):
        assert part in told
    books.close()
    ran = train()
    assert ran.exit_code == 1 and "50 are needed" in ran.stderr and not (home / "router" / BEFORE).exists()


def test_the_command_learns_from_the_books_and_adopts_what_it_learned(home: Path):
    books = books_of(home)
    for n in range(400):
        add(books, n, hard=n % 2 == 0)
    books.close()
    ran = train("--from-ledger", "--alpha", "0.1", "--json")
    assert ran.exit_code == 0, ran.output
    found = {one["name"]: one for one in json.loads(ran.stdout)}
    assert set(found) == {BEFORE, AFTER} and all(one["adopted"] and one["kept"] > 0.3 for one in found.values())
    assert (home / "router" / BEFORE).exists() and not (home / "embeddings").exists()
