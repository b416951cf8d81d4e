"""200 small pieces of work with a definition of done each: extraction, arithmetic, tool calls, short programs."""

import json
import random
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
FIRST = ("Anna", "Ben", "Chloé", "Dmitri", "Elif", "Farid", "Grace", "Hiro", "Ines", "Jonas")
LAST = ("Berg", "Costa", "Dahl", "Evans", "Fischer", "Garcia", "Huber", "Ito", "Jensen", "Keller")
CITIES = ("Berlin", "Oslo", "Porto", "Lyon", "Kyoto", "Izmir", "Bergen", "Graz", "Turin", "Leeds")


@dataclass(frozen=True)
class Piece:
    """`fields` is what the request has besides its words; `answer` is the right one: a text, or (tool, arguments)."""

    kind: str
    prompt: str
    answer: str | tuple[str, Json]
    fields: Json = field(default_factory=dict)
    checks: list[Json] = field(default_factory=list)

    def body(self, model: str) -> Json:
        """The request."""
        extra = {"baseload": {"checks": self.checks, "task": self.kind}}
        messages = [{"role": "user", "content": self.prompt}]
        return {"model": model, "messages": messages, "temperature": 0, "max_tokens": 160, **self.fields, **extra}

    def is_right(self, message: Json) -> bool:
        """Whether an accepted answer is what was wanted: what only somebody who knows can say."""
        if self.kind == "extract":
            try:
                return json.loads(message["content"]) == json.loads(str(self.answer))
            except ValueError:
                return False
        return True


def pieces(seed: int = 7) -> list[Piece]:
    """80 extractions, 60 sums, 30 tool calls and 30 programs, mixed."""
    rng = random.Random(seed)
    made = [_extract(rng, n) for n in range(80)]
    made += [_sum(rng, n) for n in range(60)]
    made += [_call(rng, n) for n in range(30)]
    made += [_program(rng, n) for n in range(30)]
    rng.shuffle(made)
    return made


def _extract(rng: random.Random, n: int) -> Piece:
    first, last, city, age = rng.choice(FIRST), rng.choice(LAST), rng.choice(CITIES), rng.randint(19, 80)
    right = {"name": f"{first} {last}", "city": city, "age": age}
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 30},
            "city": {"enum": list(CITIES)},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
        },
        "required": ["name", "city", "age"],
        "additionalProperties": False,
    }
    prompt = f"Note {n}. {first} {last}, {age} years old, has moved to {city}. Give name, city and age as JSON."
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    return Piece("extract", prompt, json.dumps(right), {"response_format": form}, [{"type": "json_schema", "schema": schema}])


def _sum(rng: random.Random, n: int) -> Piece:
    a, b, c = rng.randint(12, 99), rng.randint(12, 99), rng.randint(2, 9)
    prompt = f"Bill {n}. What is {a} + {b} * {c}? Answer with the number alone."
    return Piece("sum", prompt, str(a + b * c), checks=[{"type": "number", "value": a + b * c}])


def _call(rng: random.Random, n: int) -> Piece:
    city, days = rng.choice(CITIES), rng.randint(1, 9)
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 14}},
        "required": ["city", "days"],
        "additionalProperties": False,
    }
    about = {"name": "get_forecast", "description": "The weather of a city for some days", "parameters": schema}
    tools = [{"type": "function", "function": about}]
    prompt = f"Trip {n}. What will the weather be in {city} for {days} days? Use your tool."
    checks = [{"type": "tool_call", "required": True}]
    return Piece("call", prompt, ("get_forecast", {"city": city, "days": days}), {"tools": tools}, checks)


def _program(rng: random.Random, n: int) -> Piece:
    k = rng.randint(2, 9)
    prompt = f"Ticket {n}. Write a Python function f(x) that returns x times {k} plus {n}. Answer with the code alone."
    tests = f"assert f(0) == {n}\nassert f(3) == {3 * k + n}\nassert f(-2) == {-2 * k + n}"
    return Piece(
        "program", prompt, f"```python\ndef f(x):\n    return x * {k} + {n}\n```", checks=[{"type": "python", "tests": tests}]
    )
