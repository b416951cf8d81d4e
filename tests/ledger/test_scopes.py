"""Scopes: what is read is what was written, and what nobody knows is no scope."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.ledger.scopes import EVERYTHING, Scopes, parse

names = st.text(st.characters(codec="ascii", min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=30)
some = st.one_of(st.none(), st.frozensets(names, min_size=1, max_size=4))


@given(some, some, some, st.booleans(), st.integers(0, 10**9), st.integers(0, 10**9))
def test_words_say_the_scopes(models, suppliers, classes, admin, rpm, tpm):
    words = [f"{kind}:{one}" for kind, found in (("model", models), ("supplier", suppliers), ("data", classes))
             for one in found or ()]  # fmt: skip
    words += ["admin"] * admin + [f"{kind}:{n}" for kind, n in (("rpm", rpm), ("tpm", tpm)) if n]
    assert parse(words) == Scopes(models, suppliers, classes, admin, rpm, tpm)


@given(names, names)
def test_a_limit_is_a_limit(asked, allowed):
    scopes = parse([f"model:{allowed}", "local"])
    assert scopes.may_ask(asked) == (asked == allowed) and not scopes.may_call(asked)
    assert EVERYTHING.may_ask(asked) and EVERYTHING.may_call(asked) and not parse([]).admin


@pytest.mark.parametrize(
    "word", ["", "root", "model:", "model", "rpm:0", "rpm:-1", "rpm:x", "tpm:1e3", "data:a b", "rpm:٣", "Admin"]
)
def test_what_nobody_knows_is_no_scope(word):
    with pytest.raises(ValueError, match="scope"):
        parse([word])
