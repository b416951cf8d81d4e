"""The benchmark of structured output: its schemas, its counting, and the command on the real server."""

import json

import jsonschema
import pytest

from baseload.benchmarks.random_schemas import random_schema
from baseload.benchmarks.structured import REAL, Tally, judge

NUMBER = {"type": "integer", "maximum": 5}


def test_schemas_are_sound_and_the_same_for_a_seed():
    made = [random_schema(seed) for seed in range(300)]
    assert made == [random_schema(seed) for seed in range(300)]
    for schema in (*made, *(json.loads(line)["schema"] for line in REAL.read_text("utf-8").splitlines())):
        jsonschema.Draft202012Validator.check_schema(schema)
    words = json.dumps(made)
    for keyword in ("anyOf", "oneOf", "$ref", "prefixItems", "additionalProperties", "pattern", "format", "enum", "const"):
        assert f'"{keyword}"' in words


@pytest.mark.parametrize(
    ("status", "text", "finish", "counted"),
    [
        (200, "5", "stop", "complete"),
        (200, "6", "stop", "invalid"),
        (200, "5 5", "stop", "invalid"),
        (200, "5", "length", "cut"),
        (500, "", None, "failed"),
        (400, "", None, "refused"),
    ],
)
def test_what_became_of_an_answer(status, text, finish, counted):
    tally = Tally()
    answer = {"choices": [{"message": {"content": text}, "finish_reason": finish}]}
    judge(tally, NUMBER, status, answer if status == 200 else {"error": {"message": "why"}})
    assert (tally.asked, getattr(tally, counted)) == (1, 1)
    assert sum((tally.refused, tally.complete, tally.cut, tally.invalid, tally.failed)) == 1
    assert len(tally.examples) == (counted not in ("complete", "refused"))
