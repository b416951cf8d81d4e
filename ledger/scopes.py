"""What a virtual key may do, as words in the ledger and as sets in memory.

`admin`; `local` (no supplier at all); `model:NAME`, `supplier:NAME`, `data:CLASS`, each of them as often as needed;
`rpm:N` and `tpm:N`. No word of a kind: no limit of that kind. A word that is not known is refused, and a key that bears one
opens nothing: it may be a limit that a newer Baseload has set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_WORD = re.compile(r"[\x21-\x7e]{1,256}")


@dataclass(frozen=True, slots=True)
class Scopes:
    """None: no limit of this kind; an empty set: nothing of it. Rates are for one minute; 0: no limit."""

    models: frozenset[str] | None = None  # names that may be asked for; where `auto` then goes is not their matter
    suppliers: frozenset[str] | None = None
    data_classes: frozenset[str] | None = None
    admin: bool = False
    requests_per_minute: int = 0
    tokens_per_minute: int = 0

    def may_ask(self, model: str) -> bool:
        """Whether a request may name this model."""
        return self.models is None or model in self.models

    def may_call(self, supplier: str) -> bool:
        """Whether a request may go to this supplier."""
        return self.suppliers is None or supplier in self.suppliers


EVERYTHING = Scopes(admin=True)  # of the server's own key, and of everybody where no key is asked for


def parse(words: Iterable[str]) -> Scopes:
    """The scopes that `words` say. Raises ValueError naming the first word that says none."""
    sets: dict[str, set[str]] = {"model": set(), "supplier": set(), "data": set()}
    rates = {"rpm": 0, "tpm": 0}
    admin = local = False
    for word in words:
        kind, _, value = word.partition(":")
        if word == "admin":
            admin = True
        elif word == "local":
            local = True
        elif kind in sets and _WORD.fullmatch(value):
            sets[kind].add(value)
        elif kind in rates and value.isascii() and value.isdigit() and 0 < int(value) < 1 << 53:
            rates[kind] = int(value)
        else:
            raise ValueError(f"{word[:80]!r} is no scope: admin, local, model:NAME, supplier:NAME, data:CLASS, rpm:N, tpm:N")
    if local and sets["supplier"]:
        raise ValueError("a key that is local has no suppliers")
    suppliers = frozenset(sets["supplier"]) if sets["supplier"] or local else None
    return Scopes(
        frozenset(sets["model"]) or None, suppliers, frozenset(sets["data"]) or None, admin, rates["rpm"], rates["tpm"]
    )
