"""The benchmark of tool calls: calls read as models write them, kept or sent on by the router's own check."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.benchmarks import routing_tools
from baseload.benchmarks.routing_tools import passes
from baseload.benchmarks.tool_outcomes import ToolTask, specs
from baseload.benchmarks.written_calls import calls
from baseload.wire.errors import BadRequest

AREA = {
    "name": "math.area",
    "description": "Area of a triangle",
    "parameters": {
        "type": "dict",
        "properties": {
            "base": {"type": "float"},
            "height": {"type": "integer"},
            "unit": {"type": "string", "enum": ["m", "cm"]},
        },
        "required": ["base", "height"],
    },
}


def task(category: str = "simple", function: Any = AREA) -> ToolTask:
    return ToolTask(category, 0, "How large?", specs({"function": function}, category), {})


@pytest.mark.parametrize("answer", [
    "\n\n[math.area(base=10, height=5)]", "math.area(base=10.5, height=5)", "['math.area(base=1, height=5)']",
    "<|start_header_id|>[math.area(base=-3, height=5, unit='cm')]", "```python\n[math.area(base=2/3, height=5)]\n```",
    '<tool_call>\n{"arguments": {"base": 10, "height": 5}, "name": "math_area"}\n</tool_call>\n',
    '<tool_call>{"arguments": {\'base\': 10, \'height\': 5}, "name": \'math_area\'}</tool_call>',
    '{"tool_calls": [{"name": "math.area", "arguments": {"base": 1, "height": 2}}]}',
    "math.area(base=10, height=5);", "math_area\n{\"base\": 10, \"height\": 5}",
    '<function_call> {"name": "math_area", "arguments": {"base": 1, "height": 2}}', "[math.area(base=1, height=2, unit='m')]",
    [{"math_area": '{"base": 10, "height": 5}'}], [{"math_area": {"base": 10, "height": 5}}],
])  # fmt: skip
def test_a_sound_call_is_kept_in_whatever_way_it_is_written(answer: Any):
    assert passes(task(), answer, needs_call=True)


@pytest.mark.parametrize("answer", [
    "[math.area({'base': 10, 'height': 5})]", "[tools.math.area(base=10, height=5)]", "[math.area(base=10)]",
    "[math.area(base='ten', height=5)]", "[math.area(base=10, height=5, colour='red')]",
    "[math.area(base=10, height=5, unit='ft')]",
    "I would call math.area with base 10.", "", [], None, [{"math_area": "{base: 10"}],
    [{"math.area": '{"base": 1, "height": 2}', "x": 1}],
    "[math.area(base=10, height=5), math.volume(x=1)]", "(" * 5000, "[" * 5000 + "]" * 5000,
])  # fmt: skip
def test_a_call_that_no_tool_can_take_is_sent_on(answer: Any):
    assert not passes(task(), answer, needs_call=True)


def test_open_schemas_take_arguments_that_they_do_not_name():
    extra = "[math.area(base=10, height=5, colour='red')]"
    assert passes(task(), extra, True, open_schemas=True) and not passes(task(), extra, True)


def test_where_no_call_is_asked_for_words_are_an_answer():
    assert passes(task(), "No tool of mine does that.", needs_call=False)
    assert not passes(task(), "[math.area(base=10)]", needs_call=False)


def test_values_of_another_language_are_kept_as_written():
    function = {
        "name": "Geo.make",
        "parameters": {"type": "dict", "properties": {"a": {"type": "any"}, "b": {"type": "HashMap"}}},
    }
    answer = '[Geo.make(a=new Map(1, 2), b="x, y")]'
    [call] = calls(answer, "java")
    assert json.loads(call.arguments) == {"a": "new Map(1, 2)", "b": "x, y"}
    assert passes(task("java", function), answer, True) and not passes(task("java", function), "Geo.make(c=1)", True)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=8) | st.floats(-1e9, 1e9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6,
)  # fmt: skip


@given(st.dictionaries(st.from_regex(r"[a-z]{2,6}_", fullmatch=True), plain, max_size=4))
def test_what_python_writes_is_read_again(arguments: dict[str, Any]):
    [call] = calls(f"[f({', '.join(f'{name}={value!r}' for name, value in arguments.items())})]")
    assert call.name == "f" and json.loads(call.arguments) == arguments


@given(st.text(max_size=200))
def test_any_text_is_read_without_failing(text: str):
    for language in ("python", "java"):
        assert isinstance(calls(text, language), tuple)


def folder(tmp_path: Path) -> list[str]:
    """Twelve tasks: the weak model is wrong in six, in four of them by a call that fits no tool. The strong one is right."""
    (tmp_path / "questions").mkdir()
    asked = [{"id": f"simple_{i}", "question": f"Area {i} please, of this triangle?", "function": AREA} for i in range(12)]
    (tmp_path / "questions/x_test_simple.json").write_text("\n".join(map(json.dumps, asked)))
    good, bad, wrong = "[math.area(base=1, height=2)]", "[math.area(base=1)]", "[math.area(base=1, height=9)]"
    said = [good] * 6 + [bad] * 4 + [wrong] * 2
    (tmp_path / "answers/small").mkdir(parents=True)
    lines = [json.dumps({"id": f"simple_{i}", "result": one}) for i, one in enumerate(said)]
    (tmp_path / "answers/small/x_test_simple_result.json").write_text("\n".join(lines))
    with (tmp_path / "outcomes.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["category", "id", "question", "small", "big"])
        out.writerows(["simple", i + 1, asked[i]["question"], int(i < 6), 1] for i in range(12))
    names = {"--data": "outcomes.csv", "--questions": "questions", "--answers": "answers", "--json": "report.json"}
    return [word for option, name in names.items() for word in (option, str(tmp_path / name))]


def test_a_whole_run_counts_what_was_won(tmp_path: Path):
    routing_tools.main([*folder(tmp_path), "--strong", "big"])
    [row] = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert (row["model"], row["group"], row["tasks"], row["no_answer"]) == ("small", "graded by syntax", 12, 0)
    assert row["weak"] == 0.5 and row["escalated"] == pytest.approx(4 / 12) and row["routed"] == pytest.approx(10 / 12)
    assert row["recovered"] == pytest.approx(4 / 6) and row["false_alarms"] == 0 and row["missed"] == pytest.approx(2 / 6)


def test_answers_that_are_not_at_hand_are_left_out_and_counted(tmp_path: Path):
    words = folder(tmp_path)
    kept = tmp_path / "answers/small/x_test_simple_result.json"
    kept.write_text("\n".join(kept.read_text().splitlines()[:9]))
    routing_tools.main([*words, "--strong", "big"])
    [row] = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert (row["tasks"], row["no_answer"]) == (9, 3)


@pytest.mark.parametrize("wrong", ["question", "model"])
def test_files_that_do_not_fit_are_named(tmp_path: Path, wrong: str):
    words = folder(tmp_path)
    if wrong == "question":
        (tmp_path / "outcomes.csv").write_text("category,id,question,small,big\nsimple,1,Quite another question,1,1\n")
    with pytest.raises(BadRequest, match="simple 1" if wrong == "question" else "nobody"):
        routing_tools.main([*words, "--strong", "big" if wrong == "question" else "nobody"])


def test_a_folder_of_scores_says_the_same_as_a_table(tmp_path: Path):
    words = folder(tmp_path)
    routing_tools.main([*words, "--strong", "big"])
    by_table = json.loads((tmp_path / "report.json").read_text())["rows"]
    for model, failed in (("small", range(7, 13)), ("big", ())):
        (tmp_path / "score" / model).mkdir(parents=True)
        lines = [{"total_count": 12}, *({"id": n, "error": "no"} for n in failed)]
        (tmp_path / "score" / model / "simple_score.json").write_text("\n".join(map(json.dumps, lines)))
    words[words.index("--data") + 1] = str(tmp_path / "score")
    routing_tools.main([*words, "--strong", "big"])
    assert json.loads((tmp_path / "report.json").read_text())["rows"] == by_table


def test_a_folder_without_scores_is_named(tmp_path: Path):
    words = folder(tmp_path)
    words[words.index("--data") + 1] = str(tmp_path)
    with pytest.raises(BadRequest, match=r"_score\.json"):
        routing_tools.main([*words, "--strong", "big"])
