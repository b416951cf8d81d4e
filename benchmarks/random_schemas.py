"""JSON schemas by the number: what people and their libraries write, in every combination that a seed comes up with."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]
DEPTH = 3
NAMES = ("name", "id", "größe", "a b", 'quo"te', "back\\slash", "tags", "é", "count", "x", "is_ok", "日付")
PATTERNS = ("^[a-z]{3}$", "^\\d{4}-\\d{2}$", "^(yes|no)+$", "^[A-Z][a-z]* [0-9]+$", "^(a|b){2,5}$", "^#[0-9a-f]{6}$")
FORMATS = ("date", "date-time", "time", "uuid", "email", "ipv4", "hostname")


def random_schema(seed: int) -> Schema:
    """The schema of this number; three or four levels deep at most."""
    return _schema(random.Random(seed), DEPTH)


def _schema(rng: random.Random, depth: int) -> Schema:
    return rng.choice(PARENTS)(rng, depth) if depth and rng.random() < 0.6 else rng.choice(LEAVES)(rng)


def _bounds(rng: random.Random, least: str, most: str, up_to: int) -> Schema:
    low = rng.randrange(up_to)
    return {key: value for key, value in ((least, low), (most, low + rng.randrange(up_to))) if rng.random() < 0.7}


def _integer(rng: random.Random) -> Schema:
    low = rng.randint(-999, 999)
    whole: Schema = {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 500)}
    return whole if rng.random() < 0.6 else {"type": "integer"}


def _number(rng: random.Random) -> Schema:
    low = rng.choice((-1.5, 0, 0.25, 10))
    return {"type": "number", rng.choice(("minimum", "exclusiveMinimum")): low, "maximum": low + rng.choice((1, 2.5, 100))}


def _enum(rng: random.Random) -> Schema:
    values = [rng.choice(NAMES), rng.randint(-9, 9), True, None, "two words", 1.5, [1, "x"], {"k": 2}]
    return {"enum": rng.sample(values, rng.randint(1, 4))}


LEAVES: tuple[Callable[[random.Random], Schema], ...] = (
    lambda rng: {"type": "string", **_bounds(rng, "minLength", "maxLength", 20)},
    lambda rng: {"type": "string", "pattern": rng.choice(PATTERNS)},
    lambda rng: {"type": "string", "format": rng.choice(FORMATS)},
    _integer,
    _number,
    lambda rng: {"type": rng.choice(("boolean", "null", "number"))},
    _enum,
    lambda rng: {"const": rng.choice((*NAMES, 0, False))},
    lambda rng: {"type": rng.sample(("string", "integer", "boolean", "null"), 2)},
)


def _object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(NAMES, rng.randint(0, 4))
    made: Schema = {"type": "object", "properties": {name: _schema(rng, depth - 1) for name in names}}
    made["required"] = [name for name in names if rng.random() < 0.7]
    if rng.random() < 0.7:
        made["additionalProperties"] = False
    return made


def _table(rng: random.Random, depth: int) -> Schema:
    return {"type": "object", "additionalProperties": _schema(rng, 0), **_bounds(rng, "minProperties", "maxProperties", 2)}


def _array(rng: random.Random, depth: int) -> Schema:
    return {"type": "array", "items": _schema(rng, depth - 1), **_bounds(rng, "minItems", "maxItems", 3)}


def _tuple(rng: random.Random, depth: int) -> Schema:
    first = [_schema(rng, depth - 1) for _ in range(rng.randint(1, 3))]
    return {"type": "array", "prefixItems": first, "items": False, "minItems": len(first)}


def _any_of(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [_schema(rng, depth - 1) for _ in range(rng.randint(1, 3))]}


def _one_of(rng: random.Random, depth: int) -> Schema:
    """Alternatives that a constant tells apart, as tagged unions are."""
    tagged = [{"type": "object", "properties": {"kind": {"const": name}, "value": _schema(rng, 0)},
               "required": ["kind", "value"], "additionalProperties": False} for name in rng.sample(NAMES, 2)]  # fmt: skip
    return {"oneOf": tagged}


def _by_reference(rng: random.Random, depth: int) -> Schema:
    if depth < DEPTH:  # references begin at the root
        return _array(rng, depth)
    return {"$defs": {"x": _schema(rng, 0)}, "type": "array", "items": {"$ref": "#/$defs/x"}, "maxItems": 3}


def _rare(rng: random.Random, depth: int) -> Schema:
    """Keywords that few can turn into a grammar."""
    return rng.choice(
        (
            {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
            {"not": {"type": "string"}},
            {"if": {"type": "string"}, "then": {"minLength": 2}},
            {"allOf": [_schema(rng, 0), {"type": "string"}]},
            {"type": "integer", "multipleOf": rng.choice((2, 5))},
            {"type": "array", "contains": {"const": 1}},
        )
    )


PARENTS = (_object, _object, _object, _table, _array, _array, _tuple, _any_of, _one_of, _by_reference, _rare)
