"""What is learned is adopted only if it routes unseen prompts no worse; then a running router asks it."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from baseload.benchmarks.routing_training import load_outcomes, train
from baseload.cli.main import build
from baseload.router.forecaster import AFTER, BEFORE, Forecaster, task_of
from baseload.router.predictor import Embeds
from baseload.wire.chat import ChatRequest, Extras, Message, ResponseFormat, Text, ToolSpec

HARD, EASY = ("prove", "theorem", "integral", "lemma"), ("colour", "greet", "spell", "name")


def rows(n: int, seed: int, noise: float = 0.1) -> list[dict[str, object]]:
    """The local model does what is easy; the strong one nearly all. A wrong local answer says that it is not sure."""
    rng = random.Random(seed)
    made: list[dict[str, object]] = []
    for i in range(n):
        hard = rng.random() < 0.5
        words = " ".join(rng.choices(HARD if hard else EASY, k=6))
        weak = int((rng.random() < noise) if hard else (rng.random() > noise))
        answer = "It is 4." if weak else "I am not sure, maybe it is unclear."
        made.append(
            {"prompt": f"Please {words} {i}", "weak_ok": weak, "strong_ok": int(rng.random() < 0.95), "weak_response": answer}
        )
    return made


def written(path: Path, found: list[dict[str, object]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in found), "utf-8")
    return path


class NoVectors:
    def embed(self, texts: object) -> np.ndarray:
        raise AssertionError("this predictor reads no vectors")


def no_encoder() -> Embeds:
    return NoVectors()


def ask(text: str) -> ChatRequest:
    return ChatRequest("auto", (Message("system", (Text("be good"),)), Message("user", (Text(text),))))


def test_what_was_learned_is_adopted_and_asked(tmp_path: Path):
    outcomes, vectors = load_outcomes(written(tmp_path / "o.jsonl", rows(400, 1)), "none", "group", "")
    found = train(outcomes, vectors, tmp_path / "router", 0.1)
    assert [(one.name, one.adopted) for one in found] == [(BEFORE, True), (AFTER, True)]
    assert all(one.apgr and one.apgr > 0.6 for one in found)
    live = Forecaster(tmp_path / "router", no_encoder)
    hard, easy = live.forecast(ask("Please prove theorem lemma integral")), live.forecast(ask("Please name spell colour greet"))
    assert hard and easy and hard.gap > 0.5 > easy.gap and hard.threshold == found[0].threshold
    assert live.reads_answers
    known = ask(next(prompt for prompt in outcomes.prompts if "colour" in prompt))
    sure, unsure = (live.review(known, text, {}) for text in ("It is 4.", "I am not sure, maybe it is unclear."))
    assert sure and unsure and unsure.gap > sure.gap


def test_what_routes_worse_is_refused_unless_it_is_forced(tmp_path: Path):
    good, _ = load_outcomes(written(tmp_path / "good.jsonl", rows(400, 1)), "none", "group", "")
    train(good, None, tmp_path / "router", 0.1)
    before = (tmp_path / "router" / BEFORE).read_bytes()
    # As if the labels of what is learned had been mixed up: the held-out rows know better.
    noisy = rows(400, 2)
    for i, row in enumerate(noisy):
        row["weak_ok"] = row["weak_ok"] if i % 5 == 0 else random.Random(i).randint(0, 1)
    bad, _ = load_outcomes(written(tmp_path / "bad.jsonl", noisy), "none", "group", "")
    refused = train(bad, None, tmp_path / "router", 0.3)[0]
    assert not refused.adopted and "falls" in refused.why
    assert (tmp_path / "router" / BEFORE).read_bytes() == before
    assert train(bad, None, tmp_path / "router", 0.45, force=True)[0].adopted


def test_what_cannot_be_promised_is_not_adopted(tmp_path: Path):
    few, _ = load_outcomes(written(tmp_path / "few.jsonl", rows(60, 3)), "none", "group", "")
    [before, after] = train(few, None, tmp_path / "router", 0.01)
    assert not before.adopted and not after.adopted and "uncertifiable" in before.why
    assert Forecaster(tmp_path / "router", no_encoder).forecast(ask("anything")) is None


def test_a_changed_file_is_read_again_and_an_unsound_one_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    outcomes, _ = load_outcomes(written(tmp_path / "o.jsonl", rows(300, 1)), "none", "group", "")
    live = Forecaster(tmp_path / "router", no_encoder)
    assert live.forecast(ask("prove it")) is None and not live.reads_answers
    train(outcomes, None, tmp_path / "router", 0.2)
    monkeypatch.setattr("baseload.router.forecaster.LOOK_S", 0.0)
    assert live.forecast(ask("prove it")) is not None
    (tmp_path / "router" / BEFORE).write_bytes(b"PK no predictor")
    assert live.forecast(ask("prove it")) is None
    assert live.reads_answers


def test_a_request_as_the_predictor_sees_it():
    tool = ToolSpec("f", parameters={"type": "object", "properties": {"a": {}, "b": {}}})
    request = ChatRequest(
        "auto",
        ask("what now?").messages,
        tools=(tool,),
        response_format=ResponseFormat("json_schema", schema={"type": "object"}),
        extras=Extras(task="mail"),
    )
    task = task_of(request)
    assert (task.prompt, task.group, task.tools, task.tool_parameters) == ("what now?", "mail", 1, 2) and task.schema_chars > 0


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BASELOAD_HOME", str(tmp_path))
    data = written(tmp_path / "o.jsonl", rows(300, 1))
    run = lambda *words: CliRunner().invoke(build("route"), ["route", *words])  # noqa: E731
    assert run("evaluate", "--data", str(data), "--embed", "none").exit_code == 1
    first = run("train", "--data", str(data), "--embed", "none", "--alpha", "0.2", "--json")
    assert first.exit_code == 0 and all(one["adopted"] for one in json.loads(first.stdout))
    tested = run("evaluate", "--data", str(data), "--embed", "none", "--json")
    assert tested.exit_code == 0 and [one["name"] for one in json.loads(tested.stdout)] == [BEFORE, AFTER]


def test_signals_that_were_learned_from_are_wanted_and_read_live(tmp_path: Path):
    rng = random.Random(0)
    found = rows(400, 1)
    for row in found:  # the answers themselves say nothing here: only the margins do
        row |= {"weak_response": "It is 4.", "weak_margin_mean": (3 if row["weak_ok"] else 0.5) + rng.gauss(0, 0.3)}
    outcomes, _ = load_outcomes(written(tmp_path / "o.jsonl", found), "none", "group", "")
    train(outcomes, None, tmp_path / "router", 0.1)
    live = Forecaster(tmp_path / "router", no_encoder)
    assert live.wants == {"margin_mean"}
    known = ask(next(prompt for prompt in outcomes.prompts if "colour" in prompt))
    sure, unsure = (live.review(known, "It is 4.", {"margin_mean": margin}) for margin in (3.2, 0.3))
    assert sure and unsure and unsure.gap > sure.gap + 0.1
