"""List prices: known ones to the cent, unknown ones never nothing."""

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.ledger.retail import Tokens, cheapest, overrides, quote, total


def test_known_prices_to_the_cent():
    """Sonnet 4.5: $3 a million in, $15 out, $0.30 for what is read from the cache, $3.75 for what is written to it."""
    found = quote("anthropic", "claude-sonnet-4-5", Tokens(100_000, 2_000, cache_read=80_000))
    assert found is not None and found.usd == Decimal("0.114")
    written = quote("anthropic", "claude-sonnet-4-5", Tokens(100_000, 0, cache_write=100_000))
    assert written is not None and written.usd == Decimal("0.375")
    long = quote("anthropic", "claude-sonnet-4-5", Tokens(300_000, 0))  # another tier
    assert long is not None and long.usd > 3 * Decimal("0.3")


def test_many_short_prompts_do_not_reach_the_tier_of_one_long_one():
    found = total("anthropic", "claude-sonnet-4-5", [Tokens(100_000, 0)] * 3)
    assert found is not None and found.usd == Decimal("0.9")


def test_unknown_is_not_free():
    assert quote("nobody", "nothing", Tokens(10, 10)) is None
    assert quote("anthropic", "no-such-model-at-all", Tokens(10, 10)) is None
    assert cheapest("no-such-model-at-all", [Tokens(10, 10)]) is None
    assert total("anthropic", "claude-sonnet-4-5", []) is None


def test_the_cheapest_sells_the_same_model():
    tokens = Tokens(10**6, 10**5)
    found = cheapest("gpt-oss-120b", [tokens])
    assert found is not None and found.model.endswith("gpt-oss-120b") and found.usd > 0
    other = quote("cerebras", "gpt-oss-120b", tokens)
    assert other is not None and found.usd <= other.usd


counts = st.tuples(*[st.integers(0, 10**9)] * 4)
PRICES = '["us/m"]\ninput = 0.1\noutput = 0.7\ncache_read = 0.01\n'


@given(counts)
def test_an_operators_prices_add_up_exactly(tmp_path_factory: pytest.TempPathFactory, counts: tuple[int, int, int, int]):
    path = tmp_path_factory.mktemp("p") / "prices.toml"
    path.write_text(PRICES)
    fresh, out, read, write = counts
    found = quote("us", "m", Tokens(fresh + read + write, out, read, write), own=overrides(path))
    assert found is not None and found.source == "declared"
    assert found.usd * 10**8 == 10 * (fresh + write) + 70 * out + read


@pytest.mark.parametrize("text", ["x = 1", '["m"]\ninput=1\noutput=1', '["a/m"]\ninput=1', '["a/m"]\ninput=-1\noutput=1',
                                  '["a/m"]\ninput=true\noutput=1', '["a/m"]\ninput=nan\noutput=1'])  # fmt: skip
def test_a_wrong_price_file_is_refused_by_name(tmp_path: Path, text: str):
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(ValueError, match=r"p\.toml"):
        overrides(tmp_path / "p.toml")
