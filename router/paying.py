"""What a call is paid from: the budgets of its key, of its job and of the house, which the ledger keeps.

Its worst case is held in all of them before it goes out. Where a client says no length of its answer, the answer is cut to
what they still bear.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ledger.budgets import Budget, Exhausted
from ..ledger.purse import Hold, Purse
from ..ledger.rows import RequestRow
from ..wire.chat import ChatRequest, Usage
from ..wire.errors import BudgetExhausted
from .budget import priced_apart, within, worst_usd
from .cascade import Place, their_name
from .cost import retail_usd
from .policy import Denied

TRIES = 3  # of what another request takes away while this one does its sums


@dataclass(frozen=True, slots=True)
class Paid:
    """A request that may go out, and what is held for it; `hold` None: no budget applies."""

    request: ChatRequest
    hold: Hold | None = None


def costs(place: Place) -> bool:
    """Whether a call there is paid for. An internal price of local calls comes in here, when there is one."""
    return bool(place.rung.supplier)


async def paid(request: ChatRequest, place: Place, row: RequestRow, purse: Purse | None) -> Paid | Denied:
    """`request` as its budgets allow it at `place`, or why they don't. Raises LedgerError: then it can't be paid either."""
    if purse is None or not costs(place):
        return Paid(request)
    provider, model = place.price_provider, their_name(place)
    left = await purse.left(row.key_id, row.job)
    for _ in range(TRIES):
        if left is None:
            return Paid(request)
        if retail_usd(provider, model, Usage(1, 1)) is None:
            return Denied("budget", f"no price is known of {provider}/{model}, so it cannot be paid from a budget")
        if extra := priced_apart(request):
            return Denied("budget", f"{extra} has a price of its own, so the request cannot be paid from a budget")
        found = within(request, provider, model, left.usd)
        if isinstance(found, Denied):
            return _exhausted(left.budget)
        got = await purse.hold(row.id, worst_usd(found, provider, model), row.key_id, row.job)
        if not isinstance(got, Exhausted):
            return Paid(found, got)
        left = await purse.left(row.key_id, row.job)
    return _exhausted(left.budget) if left else Paid(request)


def _exhausted(budget: Budget) -> Denied:
    whose = {"key": "this key", "job": f"the job {budget.name}"}.get(budget.kind, "this server")
    when = "today (UTC)" if budget.period == "day" else "in total"
    left = max(budget.limit_usd - budget.held_usd - budget.spent_usd, 0)
    why = f"{left:f} of the {budget.limit_usd:f} US dollars that {whose} may spend {when} are left"
    return Denied(
        "insufficient_quota", f"the budget is exhausted: {why}, and at worst this call would cost more", BudgetExhausted
    )
