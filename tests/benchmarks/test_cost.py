"""What an accepted task costs: failures are paid too, what is not known is not free, and pairs are compared task by task."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.benchmarks import cost
from baseload.benchmarks.cost_page import page
from baseload.benchmarks.machine import Watched
from baseload.benchmarks.report_file import read
from baseload.benchmarks.stats import Slo
from baseload.benchmarks.task_outcomes import figures, frontier, outcome, swap
from baseload.benchmarks.task_runs import Candidate, Pass, TaskRun, priced
from baseload.benchmarks.task_set import built_in, read_tasks
from baseload.ledger.machine_cost import load, usd_per_hour
from baseload.runtime.store import default_root

PROFILE = Path(__file__).parents[2] / "configs" / "hardware" / "example-workstation.toml"
SMALL, BIG = Candidate("small", "house"), Candidate("big", "house")
QUIET = Watched(0.1, 0.2, 0.01, 0.001)


def run(n: int, accepted: bool, usd: float | None = 0.01, who: Candidate = SMALL, **more: Any) -> TaskRun:
    values: dict[str, Any] = {"joules": 5.0, "e2e_s": 1.0, "attempts": 1, "local": 1, "error": None, "repeat": 1} | more
    return TaskRun(f"t{n}", "sum", who.model, who.policy, values.pop("repeat"), accepted, usd, **values)


def test_failed_tasks_are_paid_by_the_accepted_ones():
    runs = [run(n, accepted=n < 5) for n in range(20)]
    found = outcome(SMALL, [Pass(runs, QUIET)], Slo(e2e=2.0), "declared", "box")
    assert (found.accepted, found.usd) == (5, pytest.approx(0.2))
    assert found.usd_per_accepted == pytest.approx(0.04) and found.joules_per_accepted == pytest.approx(20.0)
    assert found.usd_per_accepted_spread and found.usd_per_accepted_spread.low < 0.04 < found.usd_per_accepted_spread.high
    assert found.slo_met == 1.0 and found.joules_known == "declared" and found.flags == []
    assert found.accepted_low < 0.25 < found.accepted_high


def test_one_unpriced_request_leaves_the_whole_unpriced():
    runs = [run(n, accepted=True, usd=None if n == 3 else 0.01) for n in range(20)]
    found = outcome(SMALL, [Pass(runs, QUIET)], None, "none", "")
    assert found.usd is found.usd_per_accepted is found.usd_per_accepted_spread is None
    assert "1 of 20" in found.usd_why and found.slo_met is None
    none = outcome(SMALL, [Pass([run(n, accepted=False) for n in range(20)], QUIET)], None, "declared", "box")
    assert none.usd_per_accepted is None and none.usd_per_accepted_spread is None


def test_few_tasks_and_noise_are_told():
    noisy = Watched(0.95, 0.2, 0.5, 0.001)
    found = outcome(SMALL, [Pass([run(1, accepted=True)], noisy)], None, "declared", "box")
    assert any("too few" in flag for flag in found.flags) and any("noisy" in flag for flag in found.flags)
    assert any("bottleneck" in flag for flag in found.flags) and found.usd_per_accepted_spread is None


def test_a_request_costs_all_its_attempts_by_the_ledgers_word_or_the_profiles():
    hardware = load(PROFILE)
    hour = usd_per_hour(hardware).value or 0.0
    local = {"backend": "local", "retail_usd": None, "device_seconds": 3.6, "energy_joules": None, "internal_usd": None}
    bought = {"backend": "acme", "retail_usd": 0.02, "device_seconds": None, "energy_joules": None, "internal_usd": None}
    assert priced([local, bought], hardware) == (pytest.approx(hour / 1000 + 0.02), pytest.approx(3.6 * 250))
    assert priced([local, bought], None) == (None, None)
    assert priced([bought], None) == (0.02, 0.0)
    assert priced([{**bought, "retail_usd": None}], hardware)[0] is None
    assert priced([{**local, "internal_usd": 0.5, "energy_joules": 7.0}], None) == (0.5, 7.0)
    assert priced([], hardware) == (None, None)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=12, max_size=30))
def test_a_swap_is_the_mean_of_the_tasks_differences(tasks: list[tuple[bool, bool]]):
    a = [run(n, accepted=one) for n, (one, _) in enumerate(tasks)]
    b = [run(n, accepted=other, usd=0.03, who=BIG) for n, (_, other) in enumerate(tasks)]
    found = swap("a", "b", a, b)
    assert found.accepted and found.usd and found.tasks == len(tasks)
    wanted = sum(other - one for one, other in tasks) / len(tasks)
    assert found.accepted.difference == pytest.approx(wanted)
    assert found.accepted.low - 1e-9 <= wanted <= found.accepted.high + 1e-9
    assert (found.usd.low, found.usd.high) == pytest.approx((0.02, 0.02))
    if all(one == other for one, other in tasks):
        assert found.accepted.low == found.accepted.high == 0


def test_a_swap_with_an_unpriced_task_tells_no_dollars():
    a, b = (
        [run(n, accepted=True, usd=None if who == BIG and n == 2 else 0.1, who=who) for n in range(12)] for who in (SMALL, BIG)
    )
    found = swap("a", "b", a, b)
    assert found.usd is None and found.accepted is not None


def test_the_frontier_is_what_nothing_beats_in_both():
    def of(name: str, accepted: int, usd: float) -> Any:
        return outcome(
            Candidate(name, "p"), [Pass([run(n, n < accepted, usd) for n in range(20)], QUIET)], None, "declared", "b"
        )

    cheap, dear, worse, unpriced = of("cheap", 10, 0.01), of("dear", 20, 0.5), of("worse", 9, 0.6), of("none", 0, 0.1)
    assert [one.model for one in frontier([worse, dear, unpriced, cheap])] == ["cheap", "dear"]


def test_repetitions_give_figures_a_value_each_and_are_no_new_tasks():
    passes = [Pass([run(n, accepted=n % 2 == 0, repeat=r) for n in range(20)], QUIET) for r in (1, 2, 3)]
    by_name = {figure.name: figure for figure in figures(SMALL, passes)}
    assert by_name["small @ house: accepted"].values == (0.5, 0.5, 0.5)
    assert by_name["small @ house: an accepted task"].values == pytest.approx((0.02, 0.02, 0.02))
    once, thrice = (outcome(SMALL, some, None, "declared", "b") for some in (passes[:1], passes))
    assert (once.accepted_low, once.accepted_high) == (thrice.accepted_low, thrice.accepted_high)


GOOD = {"id": "a", "body": {"messages": [{"role": "user", "content": "2+2?"}]}, "expect": "4"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "1"),
        ("[]", "body"),
        (json.dumps({**GOOD, "body": {}}), "messages"),
        (json.dumps({**GOOD, "expect": None}), "any answer would do"),
        (json.dumps({**GOOD, "cheks": []}), "cheks"),
        (json.dumps(GOOD) + "\n" + json.dumps(GOOD), "one id"),
        ("", "no tasks"),
    ],
)
def test_a_bad_task_file_is_refused_by_line(tmp_path: Path, line: str, words: str):
    file = tmp_path / "tasks.jsonl"
    file.write_text(line)
    with pytest.raises(ValueError, match=words):
        read_tasks(file)


def test_what_is_expected_is_compared_as_text_or_as_json(tmp_path: Path):
    file = tmp_path / "tasks.jsonl"
    file.write_text(json.dumps(GOOD) + "\n" + json.dumps({**GOOD, "id": "b", "expect": {"x": 1}}))
    text, value = read_tasks(file)
    assert text.is_right(" 4\n") and not text.is_right("5") and not text.is_right(None)
    assert value.is_right('{ "x": 1 }') and not value.is_right("x") and not value.is_right('{"x": 2}')
    assert text.request("m")["model"] == "m" and len({task.id for task in built_in()}) == 200


@pytest.mark.slow
def test_two_policies_on_the_real_server_and_model(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("BASELOAD_HOME", str(default_root()))
    file, plain, repairs = tmp_path / "tasks.jsonl", tmp_path / "plain.toml", tmp_path / "repairs.toml"
    number = {"type": "number", "value": 12345}
    body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 6, "temperature": 0}
    never = {"id": "never", "body": body, "checks": [number]}
    always = {"id": "always", "body": {**body, "max_tokens": 60}, "checks": [{"type": "non_empty"}]}
    file.write_text(json.dumps(never) + "\n" + json.dumps(always))
    plain.write_text("[router]\nrepairs = 0\n")
    repairs.write_text("[router]\nrepairs = 2\n")
    words = ["--tasks", str(file), "--models", "auto", "--policies", f"plain={plain},repairs={repairs}", "--slo", "e2e=500"]
    words += ["--profile", str(PROFILE), "--swap", "auto@plain", "auto@repairs", "--json", str(tmp_path / "r.json")]
    assert cost.main([*words, "--html", str(tmp_path / "r.html")]) == 0
    report = read(tmp_path / "r.json")
    runs = {(one["policy"], one["task"]): one for one in report["runs"]}
    assert {key: one["accepted"] for key, one in runs.items()} == {
        ("plain", "never"): False,
        ("plain", "always"): True,
        ("repairs", "never"): False,
        ("repairs", "always"): True,
    }
    assert (runs["plain", "never"]["attempts"], runs["repairs", "never"]["attempts"]) == (1, 3)
    assert runs["repairs", "never"]["usd"] > runs["plain", "never"]["usd"] > 0
    first, second = report["outcomes"]
    assert first["cache"] == "cold" and first["joules_known"] == "assumed" and first["usd_per_accepted"] > 0
    assert second["attempts"] == 4 == second["local"] and report["swap"]["accepted"] is None, "two tasks are too few"
    assert (tmp_path / "r.html").read_text() == page(report)
    assert "auto @ repairs" in capsys.readouterr().out
