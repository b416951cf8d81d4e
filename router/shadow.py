"""Now and then a supplier answers too what the local model has answered well, so that both sides' outcomes are known.

Nobody waits for such an answer and nobody sees it: its tokens, its price and its verdicts go into the books. Which requests are
chosen depends on their ids alone, so that what is learned from them is not biased by what they are.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing

from ..ledger.ledger import Ledger
from ..ledger.purse import Hold
from ..wire.chat import ChatRequest
from .cascade import Attempt, Place, attempt_events, judge
from .checks import Check

log = logging.getLogger("baseload.router")

Over = Callable[[float | None], None]
AT_ONCE = 4  # more are not asked, and not made up for


def drawn(request_id: str) -> float:
    """A request's lot, in [0, 1)."""
    return int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=8).digest()) / 2**64


class Shadows:
    """Those under way."""

    def __init__(self, share: float, ledger: Ledger) -> None:
        """`share` of the requests, 0..1."""
        self._share, self._ledger = share, ledger
        self._running: set[asyncio.Task[None]] = set()

    def wants(self, request_id: str) -> bool:
        """Whether this request is one of the share, and there is room for it."""
        return drawn(request_id) < self._share and len(self._running) < AT_ONCE

    def begin(
        self,
        request: ChatRequest,
        hold: Hold | None,
        request_id: str,
        n: int,
        place: Place,
        checks: Sequence[Check],
        over: Over,
    ) -> None:
        """Ask `place` as the request's try number `n`, for what is held; `over` is told its price in the end, None where that
        is not known."""
        attempt = Attempt(request_id, n, place, self._ledger, "shadow", hold)
        attempt.again = lambda: False  # nobody waits for it
        task = asyncio.create_task(self._run(request, attempt, checks, over))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def close(self) -> None:
        """Stop those under way; their rows are closed."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _run(self, request: ChatRequest, attempt: Attempt, checks: Sequence[Check], over: Over) -> None:
        try:
            async with aclosing(attempt_events(request, attempt, keep=True)) as events:
                async for _ in events:
                    pass
            if attempt.failure is None and checks:
                await asyncio.to_thread(judge, request, checks, attempt, self._ledger)
        except Exception:
            log.exception("a shadow answer failed")
        finally:
            attempt.over(accepted=False)
            over(attempt.retail_usd)
