"""The routing benchmark: RouteLLM's measures, files that nobody has seen before, and whole runs on small worlds."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.benchmarks import routing
from baseload.benchmarks.routing_data import load, number
from baseload.benchmarks.routing_guarantee import verify
from baseload.benchmarks.routing_methods import splits, unseen_groups
from baseload.benchmarks.routing_metrics import apgr, cpt, curve, quality_at, ten_points
from baseload.wire.errors import BadRequest

Rows = list[dict[str, Any]]


def world(n: int, seed: int = 0) -> Rows:
    """Half of the prompts are about chess, which only the strong model knows."""
    chance = np.random.default_rng(seed)
    rows: Rows = []
    for i in range(n):
        chess = bool(chance.random() < 0.5)
        rows.append({
            "prompt": f"Question {i}: {'which chess opening' if chess else 'which capital city'} is it?",
            "weak_ok": int(chance.random() < (0.1 if chess else 0.9)),
            "strong_ok": int(chance.random() < 0.9),
        })  # fmt: skip
    return rows


def write(path: Path, rows: Rows) -> Path:
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        if ".csv" in path.name:
            out = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
            out.writeheader()
            out.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def run(path: Path, *words: str) -> dict[str, Any]:
    out = path.with_name("report.json")
    given = [
        "--data",
        str(path),
        "--embed",
        "none",
        "--seeds",
        "3",
        "--draws",
        "20",
        "--calibration-rows",
        "100",
        "--json",
        str(out),
    ]
    assert routing.main([*given, *words]) == 0
    return json.loads(out.read_text())


def test_apgr_and_cpt_of_curves_worked_out_by_hand():
    weak, strong = np.array([0.0, 0, 1, 1]), np.array([1.0, 1, 1, 1])
    best = curve(np.array([2.0, 2, 1, 1]), weak, strong)
    assert (best.weak, best.strong, quality_at(best, 0.25)) == (0.5, 1, 0.75)
    assert (cpt(best, 0.5), cpt(best, 0.8), apgr(best)) == (0.25, 0.4, 0.75)
    assert apgr(curve(np.zeros(4), weak, strong)) == pytest.approx(0.5), "equal scores are asked in random order"
    assert apgr(curve(np.array([1.0, 1, 2, 2]), weak, strong)) == 0.25
    assert apgr(curve(np.arange(4.0), strong, weak)) is None and cpt(curve(np.arange(4.0), weak, weak), 0.5) is None


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_a_curve_joins_both_models_and_the_oracle_is_above_all(rows: list[tuple[int, bool, bool]]):
    scores, weak, strong = (np.array(column, float) for column in zip(*rows, strict=True))
    found, oracle = curve(scores, weak, strong), curve(strong - weak, weak, strong)
    assert found.calls[0] == 0 and found.calls[-1] == 1
    assert found.weak == pytest.approx(weak.mean()) and found.strong == pytest.approx(strong.mean())
    calls = np.linspace(0, 1, 21)
    assert all(quality_at(found, c) <= quality_at(oracle, c) + 1e-9 for c in calls)
    assert ten_points(found).quality[5] == pytest.approx(quality_at(found, 0.5))
    if (mean := apgr(found)) is not None:
        assert mean + (apgr(curve(-scores, weak, strong)) or 0) == pytest.approx(1), "turned around, a router's area turns too"


def test_a_run_finds_what_is_there_and_reports_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = world(400)
    for row in rows:
        row |= {
            "weak_cost_usd": 0.001,
            "strong_cost_usd": 0.01,
            "mid_ok": 0.8,
            "mid_cost_usd": 0.004,
            "group": row["prompt"][12:25],
        }
    picture = tmp_path / "p.png"
    report = run(write(tmp_path / "o.csv.gz", rows), "--train-labels", "200", "--picture", str(picture))
    found = {row["name"]: row for row in report["rows"]}
    assert found["ours"]["apgr"]["mean"] > 0.65
    assert (
        found["random"]["apgr"]["mean"] == pytest.approx(0.5)
        and found["oracle"]["apgr"]["mean"] > found["ours"]["apgr"]["mean"]
    )
    models = report["models"]
    assert models["mid"]["quality"]["mean"] == pytest.approx(0.8)
    weak, strong = models["weak"]["usd_per_accepted"]["mean"], models["strong"]["usd_per_accepted"]["mean"]
    assert weak < found["ours"]["usd_per_accepted"]["mean"] < strong
    assert picture.read_bytes().startswith(b"\x89PNG") and report["splits"] == 3 and report["train_rows"] >= 200
    assert "APGR" in capsys.readouterr().out
    assert {row["method"] for row in report["guarantees"]} >= {"plug-in", "Clopper-Pearson", "conformal, on average"}


def test_probes_are_paid_for(tmp_path: Path):
    rows = world(200)
    for row in rows:
        row |= {"weak_response": "chess?" if "chess" in row["prompt"] else "a city", "weak_margin": 1.0}
    report = run(write(tmp_path / "o.jsonl", rows), "--weak-usd", "1", "--strong-usd", "1")
    found = {row["name"]: row["usd_per_accepted"]["mean"] for row in report["rows"]}
    assert found["ours + answer"] > 1.2 * found["ours"], "where both cost the same, a probe's price shows"
    assert report["predictor"]["weights"].keys() >= {"answer"}


@pytest.mark.parametrize("name", ["o.csv", "o.csv.gz", "o.jsonl", "o.jsonl.gz"])
def test_files_are_read_alike(tmp_path: Path, name: str):
    rows = [{"prompt": f"ünï {i}\nB", "weak_ok": i % 2, "strong_ok": "True", "weak_margin": "" if i else 0.5} for i in range(5)]
    rows += [{"prompt": "", "weak_ok": 1, "strong_ok": 1}, {"prompt": "x", "weak_ok": "nan", "strong_ok": 1},
             {"prompt": "y", "weak_ok": 7, "strong_ok": 1}]  # fmt: skip
    found = load(write(tmp_path / name, rows))
    assert found.prompts == [f"ünï {i}\nB" for i in range(5)] and found.weak.tolist() == [0, 1, 0, 1, 0]
    assert found.strong.tolist() == [1] * 5 and found.groups is None and found.weak_cost is None
    assert found.left_out == {"no prompt": 1, "no outcome from 0 to 1": 2}
    assert found.signals is not None and np.isnan(found.signals["weak_margin"]).tolist() == [False] + [True] * 4


def test_what_cannot_be_read_says_why(tmp_path: Path):
    for name, text, said in (
        ("a.csv", "prompt,weak_ok\nx,1\n", "no column strong_ok"), ("b.csv", "", "no rows"), ("c.txt", "x", "end in"),
        ("d.jsonl", "{", "cannot be read"), ("e.jsonl", "[1]\n", "not an object"), ("f.csv.gz", "no gzip", "cannot be read"),
        ("g.csv", "prompt,weak_ok,strong_ok\nx,?,1\n", "no row"), ("h.parquet", "no parquet", "h.parquet"),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
        with pytest.raises(BadRequest, match=said):
            load(tmp_path / name)
    with pytest.raises(BadRequest, match="cannot be read"):
        load(tmp_path / "missing.csv")
    few = write(tmp_path / "few.csv", world(30))
    with pytest.raises(BadRequest, match="30 different prompts"):
        run(few)


def test_parquet(tmp_path: Path):
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    parquet.write_table(arrow.Table.from_pylist(world(5)), tmp_path / "o.parquet")
    assert load(tmp_path / "o.parquet").prompts[0].startswith("Question 0")


@pytest.mark.parametrize("case", ["always right", "weak is better", "same words", "huge", "few"])
def test_odd_files_give_sensible_numbers(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]):
    rows = world(50 if case == "few" else 90)
    for i, row in enumerate(rows):
        if case == "always right":
            row |= {"weak_ok": 1, "strong_ok": 1}
        elif case == "weak is better":
            row |= {"weak_ok": 1, "strong_ok": 0}
        elif case == "same words":
            row["prompt"] = f"{'x' * (i + 1)}"
        elif case == "huge":
            row["prompt"] = f"{i} " + "\x00漢字 é 😀 " * 30_000
    report = run(write(tmp_path / "o.jsonl", rows))
    apgrs = [row["apgr"] for row in report["rows"]]
    if case in ("always right", "weak is better"):
        assert apgrs == [None] * len(apgrs) and "no meaning" in capsys.readouterr().out
    else:
        assert all(-1 < one["mean"] < 20 for one in apgrs)


def test_equal_prompts_stay_on_one_side(tmp_path: Path):
    rows = world(60) * 2
    for row in rows:
        row["group"] = str(len(row["prompt"]) % 4) + row["prompt"][-9:]
    found = load(write(tmp_path / "o.csv", rows))
    for train, test in [*splits(found, 40, 3), *splits(found, None, 4)]:
        assert not {found.prompts[i] for i in train} & {found.prompts[i] for i in test}
        assert len(train) + len(test) == len(rows)
    away = list(unseen_groups(found, 20, 3))
    assert found.groups is not None and len(away) == 3
    for train, test in away:
        assert not {found.groups[i] for i in train} & {found.groups[i] for i in test} and len(train) <= 20


def test_promises_hold_and_plug_in_thresholds_break():
    chance = np.random.default_rng(0)
    scores = chance.random(6000)
    weak = (chance.random(6000) > 0.6 * scores).astype(float)
    found = {(row.method, row.risk): row for row in verify(scores, weak, np.ones(6000), chance.random(500), 500, 300)}
    assert found["plug-in", "error among the kept"].broken > 0.25
    assert found["Clopper-Pearson", "error among the kept"].broken <= 0.05
    assert found["Clopper-Pearson", "regret"].broken <= 0.05 and found["Clopper-Pearson", "regret"].kept_local > 0.1
    average = found["conformal, on average", "regret"]
    assert average.mean_risk <= average.alpha * 1.02 and average.kept_local > found["Clopper-Pearson", "regret"].kept_local


@pytest.mark.parametrize(("cell", "said"), [("True", 1), ("no", 0), (" 0.5 ", 0.5), (True, 1), (3, 3)])
def test_cells_are_numbers(cell: Any, said: float):
    assert number(cell) == said
    assert all(np.isnan(number(odd)) for odd in ("", None, "inf", "many", [1]))
