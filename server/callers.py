"""Who asks: what the guard has found out about a request's key, for the routes."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from ..ledger.scopes import EVERYTHING, Scopes
from ..router.suppliers.limits import Pace
from ..wire.errors import Forbidden, RateLimited

MINUTE_S = 60.0


@dataclass(slots=True)
class Rates:
    """What one key may still ask for: a minute's allowance at once, and then as it is earned."""

    requests: Pace
    tokens: Pace

    @classmethod
    def of(cls, scopes: Scopes) -> Rates:
        """Untouched ones."""
        return cls(_pace(scopes.requests_per_minute), _pace(scopes.tokens_per_minute))

    def admit(self) -> None:
        """One more request. Raises RateLimited with the time after which to come back."""
        if wait := self.requests.wait_s():
            raise RateLimited("This key has made as many requests as it may in a minute.", retry_after=wait)
        if wait := self.tokens.wait_s():
            raise RateLimited("This key has used as many tokens as it may in a minute.", retry_after=wait)
        self.requests.take(1)


def _pace(per_minute: int) -> Pace:
    # The first one of a full minute's takes nothing of what was saved up.
    return Pace(per_minute, burst_s=MINUTE_S - MINUTE_S / per_minute if per_minute else MINUTE_S)


@dataclass(frozen=True, slots=True)
class Caller:
    """`key_id`: None where no key was asked for. `tenant`: whose prefix pages these are; all without a virtual key are one."""

    key_id: str | None = None
    scopes: Scopes = EVERYTHING
    tenant: str = ""
    rates: Rates | None = None

    def allow(self, model: str) -> None:
        """Raises Forbidden where this key may not ask for `model`."""
        if not self.scopes.may_ask(model):
            raise Forbidden(f"This key may not ask for the model {model[:80]!r}.", param="model", code="model_not_allowed")

    def sees(self, owner: str | None) -> bool:
        """Whether it may see what the key `owner` has asked."""
        return self.scopes.admin or owner == self.key_id

    def used(self, tokens: int) -> None:
        """So many tokens, of prompts and answers, count against its minute."""
        if self.rates:
            self.rates.tokens.take(tokens)


def caller(request: Request) -> Caller:
    """Who has sent this request."""
    return request.scope["state"]["caller"]
