"""A request being carried out: places in their order, answers held back until their verdict where there are checks."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from types import MappingProxyType

from ..ledger.ledger import Ledger
from ..ledger.purse import Purse
from ..ledger.rows import OutcomeRow, RequestRow, TextRow
from ..ledger.writer import LedgerError
from ..wire import neutral
from ..wire.chat import ChatRequest, Event, Failure, Finish
from ..wire.errors import ContextLengthExceeded
from .budget import within, worst_usd
from .cascade import Attempt, Place, attempt_events, judge, their_name, with_evidence
from .checks import Answer, Check, Verdict
from .conversation import Conversation
from .decision import Decision, Note
from .judging import JUDGE_S, opinion, question
from .paying import Paid, paid
from .plan import Predictor
from .policy import Denied, Policy
from .probes import signals_of, telling
from .shadow import Shadows

ASIDE = ("judge", "probe")  # calls that are no try at an answer
CLIENTS_FAULT = range(400, 429)  # of the local model's failures: the next rung would say the same


class Handling:
    """One request on its way. `events` ends in a Finish per choice or one Failure; the rest grows with it."""

    def __init__(self, decision: Decision, route: str, conversation: Conversation) -> None:
        self.decision, self.route, self.conversation = decision, route, conversation
        self.events: AsyncGenerator[Event, None]
        self.attempts: list[Attempt] = []

    @property
    def cost_usd(self) -> float | None:
        """What suppliers ask for it at list price; None where one of them has no known price."""
        prices = [None if a.unknown else a.retail_usd for a in self.attempts if a.place.rung.supplier]
        known = [p for p in prices if p is not None]
        return sum(known) if len(known) == len(prices) else None

    @property
    def tries(self) -> int:
        """Calls of models so far."""
        return sum(a.tries for a in self.attempts)

    def note(self, by: str, why: str, numbers: Mapping[str, float] = MappingProxyType({})) -> None:
        """Add to the reasons."""
        self.decision = replace(self.decision, notes=(*self.decision.notes, Note(by, why, numbers)))


class Run:
    """One request on its way through `places`. `handling` is what others see of it."""

    def __init__(
        self,
        request: ChatRequest,
        row: RequestRow,
        checks: Sequence[Check],
        places: Sequence[Place],
        handling: Handling,
        policy: Policy,
        ledger: Ledger,
        reviewer: Predictor | None = None,
        judges: Mapping[str, Place] = MappingProxyType({}),
        shadows: Shadows | None = None,
        purse: Purse | None = None,
    ) -> None:
        """`reviewer`: who says of a local answer whether a supplier's would be better; `judges`: the models that checks ask;
        `shadows`: who asks a supplier too, where that is wanted; `purse`: what calls are paid from."""
        self._shadows, self._purse = shadows, purse
        self._held = 0.0  # US dollars of the conversation's that this request's calls may cost
        self._judges = judges
        self._reviewer = reviewer
        self._request, self._row, self._checks, self._places = request, row, checks, places
        self._handling, self._policy, self._ledger = handling, policy, ledger

    async def events(self) -> AsyncGenerator[Event, None]:
        """The events that the client sees, with the request's row closed at the end whatever happens."""
        handling, status, error = self._handling, "cancelled", None
        self._ledger.add(self._row)  # not before the first step: events that nobody ever reads could not close the row again
        if self._ledger.keep_text:
            self._ledger.keep(TextRow(self._row.id, self._row.id, self._row.ts, neutral.encode(self._request)))
        try:
            cascade = self._checked if handling.decision.buffered else self._direct
            async with aclosing(cascade()) as events:
                async for event in events:
                    if isinstance(event, Failure):
                        status, error = "failed", event.code
                    yield event
            if status != "failed":
                status = "done"
                handling.conversation.place = handling.route
                await self._shadow()
        finally:
            for attempt in handling.attempts:
                attempt.over(accepted=False, error="cancelled")  # one that was still being judged when its client left
            cost = handling.cost_usd
            # What is not known may have cost all that it could.
            handling.conversation.usd += self._held if cost is None else cost
            handling.conversation.held -= self._held
            decision = handling.decision.as_json()
            end = {"route": handling.route, "status": status, "finished_ts": time.time(), "error_code": error}
            self._ledger.add(replace(self._row, decision=decision, **end))

    async def _shadow(self) -> None:
        """Have a supplier answer too what was kept here, if this request is one of those chosen for that."""
        answered = next(a for a in reversed(self._handling.attempts) if a.role not in ASIDE)
        kept = self._handling.decision.mode == "auto" and not answered.place.rung.supplier
        place = next((p for p in self._places if p.rung.supplier), None)
        if self._shadows is None or not kept or place is None or not self._shadows.wants(self._row.id):
            return
        held = self._held
        sent = await self._affordable(self._request, place)
        if isinstance(sent, Denied):
            return
        worst, self._held = self._held - held, held  # the shadow's to give back
        conversation = self._handling.conversation

        def over(usd: float | None) -> None:
            conversation.held -= worst
            conversation.usd += worst if usd is None else usd

        checks = [check for check in self._checks if check["type"] != "judge"]
        self._shadows.begin(sent.request, sent.hold, self._row.id, self._handling.tries, place, checks, over)
        self._handling.note("shadow", f"{place.rung.name} is asked too, to learn from")

    async def _direct(self) -> AsyncGenerator[Event, None]:
        """Stream at once. A place that fails before its first word hands over to the next; checks are only recorded."""
        last: Failure | None = None
        for n, place in enumerate(self._places):
            if self._tried_enough():
                break
            sent = await self._affordable(self._request, place)
            if isinstance(sent, Denied):
                last = last or _denied(sent)
                continue
            attempt, asked, begun = self._begin(place, sent), sent.request, False
            async with aclosing(attempt_events(asked, attempt, keep=bool(self._checks))) as events:
                async for event in events:
                    if isinstance(event, Failure) and not begun and _next_may_do_better(event, n, self._places):
                        last = event
                        break
                    begun = True
                    if isinstance(event, Finish) and len(attempt.finishes) == asked.sampling.n:
                        verdicts = await self._judged(attempt) if self._checks else []
                        attempt.over(accepted=all(v.passed for v in verdicts))
                    yield event
            attempt.over(accepted=False)
            if begun:
                return
        if last is not None:
            yield last

    async def _checked(self) -> AsyncGenerator[Event, None]:
        """Hold each answer back until its verdict; a failed one goes to the next try with the evidence."""
        asked, doubted = self._request, None
        last: Failure | list[Verdict] = []
        for n, place in enumerate(self._places):
            for turn in range(1 if place.rung.supplier else 1 + self._policy.repairs):
                if self._tried_enough():
                    for event in self._give_up(last, doubted):
                        yield event
                    return
                sent = await self._affordable(asked, place)
                if isinstance(sent, Denied):
                    last = last or _denied(sent)
                    break
                if self._reviewer is not None and not place.rung.supplier:
                    sent = replace(sent, request=telling(sent.request, self._reviewer.wants))
                attempt = self._begin(place, sent, "repair" if turn else "answer")
                async with aclosing(attempt_events(sent.request, attempt, keep=True)) as events:
                    async for _ in events:
                        pass
                if attempt.failure is not None:
                    attempt.over(accepted=False)
                    last = attempt.failure
                    if not _next_may_do_better(attempt.failure, n, self._places):
                        for event in self._give_up(last, doubted):
                            yield event
                        return
                    break
                verdicts = await self._judged(attempt) if self._checks else []
                if all(v.passed for v in verdicts) and n + 1 < len(self._places) and not place.rung.supplier:
                    doubts = await self._reviewed(sent.request, attempt)
                    doubted, verdicts = (attempt if doubts else doubted), verdicts + doubts
                accepted = all(v.passed for v in verdicts)
                attempt.over(accepted=accepted)
                if accepted:
                    for event in attempt.events:
                        yield event
                    return
                last, asked = verdicts, with_evidence(self._request, attempt, verdicts)
        for event in self._give_up(last, doubted):
            yield event

    def _give_up(self, last: Failure | list[Verdict], doubted: Attempt | None) -> Sequence[Event]:
        """Nobody did better: the answer that was only doubted, or else why there is none."""
        if doubted is None:
            return [self._end(last)]
        doubted.accept()
        self._handling.route = doubted.place.rung.name
        return doubted.events

    async def _affordable(self, request: ChatRequest, place: Place) -> Paid | Denied:
        """`request` as its budgets allow it here, with what is held for it; a denial is noted."""
        if not place.rung.supplier:
            return Paid(request)
        found: Paid | Denied | ChatRequest = within(request, place.price_provider, their_name(place), self._left_usd())
        if not isinstance(found, Denied):
            found = await self._held_for(found, place)
        if isinstance(found, Denied):
            self._handling.note(found.gate, f"{place.rung.name}: {found.reason}")
        return found

    async def _held_for(self, request: ChatRequest, place: Place) -> Paid | Denied:
        """Money for it, the conversation's first: other requests of it run beside this one, and waiting lets them."""
        worst = worst_usd(request, place.price_provider, their_name(place)) if self._policy.conversation_usd else 0.0
        self._held += worst
        self._handling.conversation.held += worst
        try:
            found = await paid(request, place, self._row, self._purse)
        except LedgerError as error:
            found = Denied("ledger_unavailable", error.message.rstrip("."), LedgerError)
        if isinstance(found, Denied):
            self._held -= worst
            self._handling.conversation.held -= worst
        return found

    def _left_usd(self) -> float | None:
        """What suppliers may still ask for; None: any amount. What has no known price has no known cost: nothing is left."""
        policy, conversation = self._policy, self._handling.conversation
        said = conversation.usd + conversation.held - self._held
        limits = [self._request.extras.budget_usd, policy.max_usd or None]
        limits.append(policy.conversation_usd - said if policy.conversation_usd else None)
        known = [limit for limit in limits if limit is not None]
        if not known:
            return None
        spent = [a.at_most_usd for a in self._handling.attempts if a.place.rung.supplier]
        known_costs = [usd for usd in spent if usd is not None]
        return min(known) - sum(known_costs) if len(known_costs) == len(spent) else 0.0

    def _tried_enough(self, more: int = 1) -> bool:
        """Whether `more` tries are not allowed, which is noted. Calls that broke off without a word count too."""
        tries = sum(1 + a.unknown for a in self._handling.attempts if a.role not in ASIDE)
        if tries + more <= self._policy.max_attempts:
            return False
        self._handling.note("attempts", f"{self._policy.max_attempts} tries are all that the policy allows")
        return True

    def _begin(self, place: Place, sent: Paid, role: str = "answer", *, route: bool = True) -> Attempt:
        attempt = Attempt(self._row.id, self._handling.tries, place, self._ledger, role, sent.hold)
        if place.rung.supplier and self._left_usd() is not None:
            attempt.worst_usd = worst_usd(sent.request, place.price_provider, their_name(place))
        # What is held pays for one call.
        attempt.again = lambda: sent.hold is None and self._may_repeat(attempt)
        self._handling.attempts.append(attempt)
        if route:
            self._handling.route = place.rung.name
        return attempt

    def _may_repeat(self, attempt: Attempt) -> bool:
        """Whether a call that broke off without a word may be made again: it may have to be paid for twice."""
        left = self._left_usd()
        if (left is not None and left < 0) or self._tried_enough(0):  # it is counted by now
            return False
        if self._policy.conversation_usd and attempt.worst_usd is not None:
            self._held += attempt.worst_usd
            self._handling.conversation.held += attempt.worst_usd
        return True

    async def _judged(self, attempt: Attempt) -> list[Verdict]:
        """All checks' verdicts. A model is asked only for what has passed the others, and not from one of the few threads."""
        plain = [check for check in self._checks if check["type"] != "judge"]
        verdicts = await asyncio.to_thread(judge, self._request, plain, attempt, self._ledger)
        asked = [check for check in self._checks if check["type"] == "judge"]
        if not asked or not all(v.passed for v in verdicts):
            return verdicts
        answers = attempt.answers(self._request.sampling.n)
        words: dict[tuple[int, str], Verdict] = {}
        for check, answer in ((check, answer) for check in asked for answer in answers):
            if (id(check), answer.text) not in words:
                words[id(check), answer.text] = await self._ask_judge(check, answer)
        return verdicts + judge(self._request, asked, attempt, self._ledger, lambda check, a: words[id(check), a.text])

    async def _ask_judge(self, check: Check, answer: Answer) -> Verdict:
        """A model's word on an answer. What it costs is the request's."""
        place = self._judges[check.get("model") or "local"]
        asked = question(check, answer, self._request)
        sent = await self._affordable(asked, place)
        if isinstance(sent, Denied):
            return Verdict("judge", False, f"the judge could not be asked: {sent.reason}")
        attempt = self._begin(place, sent, "judge", route=False)
        try:
            async with asyncio.timeout(JUDGE_S), aclosing(attempt_events(sent.request, attempt, keep=True)) as events:
                async for _ in events:
                    pass
        except TimeoutError:
            attempt.over(accepted=False, error="timeout")
            return Verdict("judge", False, "the judge took too long")
        verdict = opinion(check, attempt.answers(1)[0].text, attempt.failure)
        attempt.over(accepted=False)  # it is nobody's answer
        return replace(verdict, cost_usd=attempt.row.retail_usd or 0.0)

    async def _reviewed(self, sent: ChatRequest, attempt: Attempt) -> list[Verdict]:
        """What the reviewer says against a local answer to `sent`; nothing where it is good enough."""
        if self._reviewer is None:
            return []

        def begin(request: ChatRequest) -> Attempt:
            return self._begin(attempt.place, Paid(request), "probe", route=False)

        answer = attempt.answers(1)[0].text
        signals = await signals_of(sent, attempt, self._reviewer.wants, begin)
        forecast = await asyncio.to_thread(self._reviewer.review, self._request, answer, signals)
        if forecast is None:
            return []
        numbers = {"gap": forecast.gap, "threshold": forecast.threshold, **forecast.numbers, **signals}
        doubts = forecast.gap > forecast.threshold
        self._handling.note(
            "confidence", forecast.why or "the answer looks doubtful" if doubts else "the answer will do", numbers
        )
        verdict = Verdict("confidence", not doubts, "the answer looks doubtful" if doubts else "", -forecast.gap)
        row = attempt.row
        self._ledger.add(
            OutcomeRow(row.request_id, row.id, verdict.check, verdict.passed, verdict.score, verdict.evidence, time.time())
        )
        return [verdict] if doubts else []

    def _end(self, last: Failure | list[Verdict]) -> Failure:
        """No place gave an answer that passes: which checks failed, and why nobody else was asked."""
        if isinstance(last, Failure):
            return last
        why = "; ".join(f"{v.check}: {v.evidence}" for v in last if not v.passed)
        if not any(a.place.rung.supplier and a.role not in ASIDE for a in self._handling.attempts):
            decision = self._handling.decision
            denied = [f"{r.name}: {r.reason}" for r in decision.rungs if not r.allowed]
            denied += [note.why for note in decision.notes if note.by in ("budget", "attempts")]
            denied = denied or ["no supplier is configured for it"]
            message = f"The answer did not pass its checks ({why}), and it may not be escalated ({'; '.join(denied)})."
            return Failure(message, 403, "permission_error", "escalation_denied")
        return Failure(f"No answer passed its checks ({why}).", 502, "server_error", "checks_failed")


def _denied(denied: Denied) -> Failure:
    retry = 1.0 if denied.error.retryable else None
    return Failure(f"{denied.reason}.", denied.error.status, denied.error.kind, denied.gate, denied.error.retryable, retry)


def _next_may_do_better(failure: Failure, n: int, places: Sequence[Place]) -> bool:
    """What the local model refuses, or is too busy for, is not bought; what one supplier refuses another may take."""
    if n + 1 >= len(places):
        return False
    if failure.code == ContextLengthExceeded.default_code:
        return True  # another place may have room for it
    return bool(places[n].rung.supplier) or (failure.status not in CLIENTS_FAULT and failure.status != 429)
