"""What a supplier's attempt costs at its list price."""

from ..ledger.retail import Tokens, quote
from ..wire.chat import Usage


def retail_usd(provider: str, model: str, usage: Usage) -> float | None:
    """US dollars; None where no price is known. An unpriced model is never taken as free."""
    tokens = Tokens(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.cache_write_tokens)
    found = quote(provider, model, tokens)
    return None if found is None else float(found.usd)
