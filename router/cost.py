"""What a supplier's attempt costs at its list price, from the dated price data that is shipped. Nothing is fetched."""

import logging

import genai_prices

from ..wire.chat import Usage

log = logging.getLogger("baseload.router")


def retail_usd(provider: str, model: str, usage: Usage) -> float | None:
    """US dollars; None where no price is known. An unpriced model is never taken as free."""
    counted = genai_prices.Usage(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        cache_read_tokens=usage.cached_tokens,
        cache_write_tokens=usage.cache_write_tokens,
    )
    try:
        return float(genai_prices.calc_price(counted, model_ref=model, provider_id=provider).total_price)
    except (LookupError, ValueError) as error:
        log.debug("no price for %s/%s: %s", provider, model, error)
        return None
