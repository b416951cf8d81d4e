"""Rules of placement: which requests belong where, whatever the rest of the policy says of `auto`.

A rule is a table: `place` (`local`, a local model's name or `supplier/model`), and what a request must be to fall under it;
all that a rule names must hold. Rules move requests; they open no gate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..wire.chat import ChatRequest
from ..wire.errors import BaseloadError


class RuleError(BaseloadError):
    """A rule's table is wrong. One line; never reaches HTTP clients."""

    default_code = "settings_error"


@dataclass(frozen=True, slots=True)
class Rule:
    """`only`: nowhere else, even where the place fails."""

    name: str
    place: str
    only: bool = False
    task: str = ""  # the task class that the client gave
    system_contains: str = ""
    last_contains: str = ""  # of the user's last words
    tools_at_most: int = -1
    tools_at_least: int = -1
    prompt_chars_at_most: int = -1

    def holds(self, request: ChatRequest) -> bool:
        """Whether `request` falls under it."""
        system = "\n".join(m.text for m in request.messages if m.role in ("system", "developer"))
        last = next((m.text for m in reversed(request.messages) if m.role == "user"), "")
        return all(
            (
                not self.task or self.task == request.extras.task,
                self.system_contains in system,
                self.last_contains in last,
                self.tools_at_most < 0 or len(request.tools) <= self.tools_at_most,
                len(request.tools) >= self.tools_at_least,
                self.prompt_chars_at_most < 0 or sum(len(m.text) for m in request.messages) <= self.prompt_chars_at_most,
            )
        )


def parse_rules(tables: Sequence[Mapping[str, Any]]) -> tuple[Rule, ...]:
    """Rules in their order. Raises RuleError, naming the rule and the key."""
    return tuple(_parse(table, n) for n, table in enumerate(tables))


def _parse(table: Mapping[str, Any], n: int) -> Rule:
    known = {f.name: f.type for f in fields(Rule)}
    name = table.get("name", f"rule {n + 1}")
    for key, value in table.items():
        if key not in known:
            raise RuleError(f"{name}: unknown key {key!r}; known are {', '.join(known)}")
        if type(value) is not known[key]:
            raise RuleError(f"{name}: {key} must be of type {getattr(known[key], '__name__', '')}")
    if not table.get("place"):
        raise RuleError(f"{name}: a rule needs a place: local, a model's name, or supplier/model")
    if len(table.keys() - {"name", "place", "only"}) == 0:
        raise RuleError(f"{name}: a rule without a condition would hold for everything")
    return Rule(**{"name": name, **table})


def first_of(rules: Sequence[Rule], request: ChatRequest) -> Rule | None:
    """The first rule that `request` falls under."""
    return next((rule for rule in rules if rule.holds(request)), None)
