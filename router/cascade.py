"""Try, check, escalate with the evidence.

An answer with checks is held back until its verdict, so that a client never sees a word of one that failed; an answer
without streams at once. After the first word nothing is tried again: what breaks then ends in a Failure.
"""

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..ledger.ledger import Ledger
from ..ledger.purse import Hold
from ..ledger.rows import AttemptRow, OutcomeRow, TextRow, new_id
from ..ledger.writer import LedgerError
from ..wire import egress, neutral
from ..wire.backend import Backend
from ..wire.chat import (
    ChatRequest,
    Event,
    Failure,
    Finish,
    Message,
    ReasoningDelta,
    Receipt,
    Text,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from . import checks as definitions
from .checks import Answer, Check, Judge, Verdict, calls_of
from .cost import retail_usd
from .policy import Rung
from .suppliers.resilience import repeats


@dataclass(frozen=True, slots=True)
class Place:
    """A rung with the backend behind it. `price_provider` names it in the price data; empty for the local model."""

    rung: Rung
    backend: Backend
    price_provider: str = ""


class Attempt:
    """One backend's try, being written down as it goes."""

    def __init__(
        self, request_id: str, n: int, place: Place, ledger: Ledger, role: str = "answer", hold: Hold | None = None
    ) -> None:
        """`role`: answer, repair (of one that failed its checks), probe (a sample, to compare with), judge, or shadow (nobody
        waits for it). `hold`: the money that is held for it, which its end settles."""
        model = place.rung.model.id
        self._hold = hold
        self.place, self.role, self._ledger, self._clock = place, role, ledger, time.monotonic()
        backend = place.rung.supplier or "local"
        self.row = AttemptRow(new_id(), request_id, n, backend, model, started_ts=time.time(), role=role)
        self.events: list[Event] = []
        self.finishes: dict[int, Finish] = {}
        self.failure: Failure | None = None
        self.choices = 1  # how many answers were asked for
        self.rejected = 0  # the first choice that failed a check
        self._first_token_s: float | None = None
        self._usage: Usage | None = None
        self._asked: ChatRequest | None = None
        self._ended = False
        self.worst_usd: float | None = None  # what its call may cost, under a budget
        self.tries, self.unknown = 1, 0  # calls that were made; those before the last whose price nobody knows
        self.again: Callable[[], bool] = lambda: True  # whether such a call may be made once more
        try:
            ledger.add(self.row)
        except LedgerError:
            if hold:
                hold.settle(0.0)  # it is not made
            raise

    def saw(self, event: Event, *, keep: bool) -> None:
        """Take note of an event; `keep` it if the answer is to be judged."""
        if isinstance(event, TextDelta | ReasoningDelta | ToolCallDelta):
            if self._first_token_s is None:
                self._first_token_s = time.monotonic() - self._clock
        elif isinstance(event, Usage):
            self._usage = event
        elif isinstance(event, Finish):
            self.finishes[event.index] = event
        elif isinstance(event, Failure):
            self.failure = event
        if keep or self._ledger.keep_text:
            self.events.append(event)

    def repeated(self, failure: Failure) -> bool:
        """A call failed without a word, and would be made again: whether it may. It gets a row of its own."""
        self.unknown += failure.unanswered
        if failure.unanswered and not self.again():
            self.unknown -= 1
            return False
        paid = None if failure.unanswered or not self.place.price_provider else 0.0
        lost = {"duration_s": time.monotonic() - self._clock, "retail_usd": paid, "error": failure.code}
        self._ledger.add(self._ledger.ended(replace(self.row, id=new_id(), **lost)))
        self.tries, self._clock = self.tries + 1, time.monotonic()
        self.row = replace(self.row, n=self.row.n + 1, started_ts=time.time())
        self._ledger.add(self.row)
        return True

    def sent(self, request: ChatRequest) -> ChatRequest:
        """`request` as the backend is asked it, which is noted."""
        self._asked = request
        return replace(request, model=their_name(self.place), at=self.row.started_ts)

    def answers(self, n: int) -> list[Answer]:
        """The n choices, as the checks see them."""
        return [self._answer(index) for index in range(n)]

    def _answer(self, index: int) -> Answer:
        own = [e for e in self.events if getattr(e, "index", None) == index]
        text = "".join(e.text for e in own if isinstance(e, TextDelta))
        finish = self.finishes.get(index)
        return Answer(text, finish.reason if finish else "", calls_of([e for e in own if isinstance(e, ToolCallDelta)]))

    def over(self, *, accepted: bool, error: str | None = None) -> None:
        """The attempt has ended; writes its row once."""
        if self._ended:
            return
        self._ended = True
        usage = self._usage or Usage(0, 0)
        self.row = replace(
            self.row,
            first_token_s=self._first_token_s,
            duration_s=time.monotonic() - self._clock,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
            device_seconds=0.0 if self._was_refused_here() else usage.device_seconds,
            **_digests(usage.receipt),
            cache_write_tokens=usage.cache_write_tokens,
            input_seconds=usage.input_seconds,
            finish_reason=self.finishes[0].reason if 0 in self.finishes else None,
            accepted=accepted,
            retail_usd=self._price(),
            error=error or (self.failure.code if self.failure else None),
        )
        self.row = self._ledger.ended(self.row)
        if self._hold:
            self._hold.settle(self.row.retail_usd)
        self._ledger.add(self.row)
        if self._ledger.keep_text:
            self._ledger.keep(self._text(usage.receipt))

    def _was_refused_here(self) -> bool:
        """Whether a local model said no before it did anything: that took no time."""
        refused = self.failure is not None and 400 <= self.failure.status <= 429 and self._usage is None
        return refused and not self.place.rung.supplier

    def _text(self, paper: Receipt | None) -> TextRow:
        """The words. The first try was asked what the request asked, and what that was stands there."""
        n = max(self.finishes, default=-1) + 1 or 1
        asked = self._asked  # kept where it is not what the request asked
        own = asked if asked is not None and (self.row.n or asked.sampling.margins) else None
        answers = [kept_answer(answer, paper, i) for i, answer in enumerate(self.answers(n))]
        return TextRow(self.row.id, self.row.request_id, self.row.started_ts, own and neutral.encode(own), answers)

    def accept(self) -> None:
        """It is the answer after all, for want of a better one."""
        self.row = replace(self.row, accepted=True)
        self._ledger.add(self.row)

    @property
    def signals(self) -> dict[str, float]:
        """What the model's runtime says of its answer, where it was asked."""
        return dict(self._usage.signals or {}) if self._usage else {}

    @property
    def retail_usd(self) -> float | None:
        """What it costs at list price, once its events have ended, judged or not."""
        return self.row.retail_usd if self._ended else self._price()

    @property
    def at_most_usd(self) -> float | None:
        """The same with all of its calls, each that nobody knows the price of as its worst case. None without a budget."""
        own = self.retail_usd if self.retail_usd is not None else self.worst_usd
        if own is None or not self.unknown:
            return own
        return None if self.worst_usd is None else own + self.unknown * self.worst_usd

    def _price(self) -> float | None:
        """US dollars. None for the local model and where no price is known, or not all of the usage: what an answer says of it
        before its end is not what it comes to. A call that was refused cost nothing; one that broke off may have."""
        provider = self.place.price_provider
        is_whole = self.failure is None and len(self.finishes) >= self.choices
        if not provider or self._usage is None or not is_whole:
            refused = self.failure is not None and not self.failure.unanswered and self._first_token_s is None
            return 0.0 if provider and refused else None
        return retail_usd(provider, their_name(self.place), self._usage)


def kept_answer(answer: Answer, paper: Receipt | None, choice: int) -> dict[str, Any]:
    """An answer as it is kept; with its token ids where this machine made it."""
    tokens = paper.tokens[choice] if paper and choice < len(paper.tokens) else None
    calls = [asdict(call) for call in answer.calls]
    return {"text": answer.text, "reason": answer.finish_reason, "calls": calls, "tokens": tokens and list(tokens)}


def _digests(paper: Receipt | None) -> dict[str, Any]:
    """What an answer of this machine is replayed with, as columns."""
    if paper is None:
        return {}
    return {
        "model_digest": paper.model,
        "template_digest": paper.template,
        "kernels_digest": paper.kernels,
        "settings_digest": paper.settings,
        "tokens_digest": paper.tokens_digest,
        "seed": paper.seed,
    }


async def attempt_events(request: ChatRequest, attempt: Attempt, *, keep: bool) -> AsyncGenerator[Event, None]:
    """The backend's events, noted on their way. Leaving early stops the backend and closes the row."""
    attempt.choices = request.sampling.n
    egress.request_id.set(attempt.row.request_id)
    repeats.set(attempt.repeated)
    try:
        async with aclosing(attempt.place.backend.generate(attempt.sent(request))) as events:
            async for event in events:
                attempt.saw(event, keep=keep)
                yield event
    finally:
        if attempt.failure is not None:
            attempt.over(accepted=False)  # here, as whoever reads a Failure may read no further
        elif len(attempt.finishes) < request.sampling.n:
            attempt.over(accepted=False, error="cancelled")


def their_name(place: Place) -> str:
    """What the backend itself calls the model."""
    return place.rung.model.id.removeprefix(f"{place.rung.supplier}/") if place.rung.supplier else place.rung.model.id


def judge(
    request: ChatRequest, checks: Sequence[Check], attempt: Attempt, ledger: Ledger, judges: Judge | None = None
) -> list[Verdict]:
    """The verdicts on all choices, written down; a check passes if every choice passes it. Blocks, at most CHECKS_S long, and
    for as long as sandboxed programs and `judges` take."""
    failed: dict[int, Verdict] = {}
    verdicts: list[Verdict] = []
    until = time.monotonic() + definitions.CHECKS_S
    for choice, answer in enumerate(attempt.answers(request.sampling.n)):
        verdicts = definitions.run(checks, replace(answer, request=request), until, judges)
        if not failed and not all(v.passed for v in verdicts):
            attempt.rejected = choice
        failed |= {i: v for i, v in enumerate(verdicts) if not v.passed and i not in failed}
    verdicts = [failed.get(i, v) for i, v in enumerate(verdicts)]
    for v in verdicts:
        passed = None if v.pending else v.passed
        where = (attempt.row.request_id, attempt.row.id)
        ledger.add(OutcomeRow(*where, v.check, passed, v.score, v.evidence, time.time(), pending=v.pending))
    return verdicts


def with_evidence(request: ChatRequest, attempt: Attempt, verdicts: Sequence[Verdict]) -> ChatRequest:
    """The task for the next rung: what was asked, what was tried, and why that was not accepted."""
    reasons = "; ".join(f"{v.check}: {v.evidence}" for v in verdicts if not v.passed)
    tried = attempt.answers(request.sampling.n)[attempt.rejected].text
    said = (Message("assistant", (Text(tried),)),) if tried.strip() else ()
    why = Text(f"This answer was not accepted ({reasons}). Answer the original request again, correctly and completely.")
    return replace(request, messages=(*request.messages, *said, Message("user", (why,))))
