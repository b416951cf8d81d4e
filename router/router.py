"""Names to places, gates, and the cascade: `Router.handle` is the way of every request."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Literal

from ..ledger.ledger import Ledger
from ..ledger.rows import RequestRow
from ..wire.backend import Backend, ModelInfo, Tokenizing
from ..wire.chat import ChatRequest, Event, Failure, Finish
from ..wire.errors import BadRequest, BaseloadError, ModelNotFound
from . import checks as definitions
from .cascade import Attempt, Place, attempt_events, judge, with_evidence
from .checks import Check, Verdict
from .decision import Decision, RungDecision
from .policy import Denied, Policy, Rung
from .policy import judge as gate
from .suppliers.profile import SupplierProfile

AUTO, LOCAL, JOB = "auto", "local", "job:"
RESERVED = (AUTO, LOCAL)
CLIENTS_FAULT = range(400, 429)  # of the local model's failures: the next rung would say the same


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Who asks."""

    request_id: str
    key_id: str | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """What a model name means."""

    mode: Literal["local", "auto", "supplier"]
    places: tuple[Place, ...]  # in the order of trying


class Handling:
    """One request on its way. `events` ends in a Finish per choice or one Failure; the rest grows with it."""

    def __init__(self, decision: Decision, route: str) -> None:
        self.decision, self.route = decision, route
        self.events: AsyncGenerator[Event, None]
        self.attempts: list[Attempt] = []

    @property
    def cost_usd(self) -> float | None:
        """What suppliers ask for it at list price; None where one of them has no known price."""
        prices = [a.row.retail_usd for a in self.attempts if a.place.rung.supplier]
        known = [p for p in prices if p is not None]
        return sum(known) if len(known) == len(prices) else None


class Router:
    """Decides where requests run, and runs them. `local` are the served models; the first is called `local`."""

    def __init__(
        self,
        local: Sequence[Backend],
        suppliers: Mapping[str, tuple[SupplierProfile, Backend]],
        policy: Policy,
        ledger: Ledger,
    ) -> None:
        self._policy, self._ledger = policy, ledger
        self._local = {b.models[0].id: Place(Rung(b.models[0].id, b.models[0]), b) for b in local}
        self._remote = {
            model.id: Place(Rung(model.id, model, name, profile.not_ready), backend, profile.price_provider or profile.name)
            for name, (profile, backend) in suppliers.items()
            for model in profile.models
        }
        for name in self._local:
            if name in RESERVED or name.startswith(JOB):
                raise BadRequest(f"A model cannot be called {name!r}: the name is reserved.")
        for name in policy.ladder:
            if name not in self._remote:
                raise BadRequest(f"The ladder names {name!r}, which no configured supplier has.")

    def models(self) -> tuple[ModelInfo, ...]:
        """The names that a request may ask for: served models, `local` and `auto`, and suppliers that may be called now."""
        first = next(iter(self._local.values())).rung.model
        reserved = tuple(replace(first, id=name) for name in RESERVED)
        callable_now = (p.rung for p in self._remote.values() if self._may_leave(p.rung))
        return (*(p.rung.model for p in self._local.values()), *reserved, *(rung.model for rung in callable_now))

    def resolve(self, name: str) -> Target:
        """What `name` means. Raises ModelNotFound."""
        if name in self._local:
            return Target("local", (self._local[name],))
        first = next(iter(self._local.values()))
        if name == LOCAL:
            return Target("local", (first,))
        if name == AUTO:
            return Target("auto", (first, *(self._remote[rung] for rung in self._policy.ladder)))
        if name in self._remote:
            return Target("supplier", (self._remote[name],))
        raise ModelNotFound(f"The model {name[:80]!r} does not exist.", param="model")

    async def handle(self, request: ChatRequest, context: RequestContext) -> Handling:
        """Decide, and begin. The decision is written down with the first event, or at once where no place is left.

        Raises ModelNotFound, BadRequest (its checks), or the error of a gate.
        """
        target = self.resolve(request.model)
        checks = await _checks(request)
        judged = [(place, await self._judge(request, place)) for place in target.places]
        allowed = [place for place, verdict in judged if verdict is None]
        decision = Decision(
            asked=request.model,
            mode=target.mode,
            rungs=tuple(_rung_decision(place, verdict) for place, verdict in judged),
            checks=tuple(c["type"] for c in checks),
            buffered=bool(checks) and target.mode == "auto",
        )
        row = RequestRow(
            id=context.request_id,
            ts=time.time(),
            protocol=request.protocol,
            model_asked=request.model,
            decision=decision.as_json(),
            stream=request.stream,
            key_id=context.key_id,
        )
        if not allowed:
            denied = next(verdict for _, verdict in judged if verdict is not None)
            self._ledger.add(replace(row, status="failed", finished_ts=time.time(), error_code=denied.gate))
            raise denied.error(f"{denied.reason}.", param="model" if denied.gate != "context" else "messages")
        handling = Handling(decision, "" if decision.buffered else allowed[0].rung.name)
        handling.events = self._run(request, row, checks, allowed, handling)
        return handling

    async def count_tokens(self, request: ChatRequest) -> int | None:
        """The prompt's length where it would be tried first; None where only a supplier could tell. Raises ModelNotFound,
        BadRequest."""
        first = self.resolve(request.model).places[0]
        return await asyncio.to_thread(first.backend.count_tokens, request)

    def tokenizing(self, name: str) -> Tokenizing:
        """The tokenizer of a model, by the place where it would be tried first. Raises ModelNotFound, BadRequest."""
        backend = self.resolve(name).places[0].backend
        if not isinstance(backend, Tokenizing):
            raise BadRequest("The tokens of this model are known to its supplier alone.", param="model")
        return backend

    async def _judge(self, request: ChatRequest, place: Place) -> Denied | None:
        verdict = gate(request, self._policy, await _measured(request, place))
        return verdict if isinstance(verdict, Denied) else None

    def _may_leave(self, rung: Rung) -> bool:
        return not isinstance(gate(ChatRequest(rung.name), self._policy, rung), Denied)

    async def _run(
        self, request: ChatRequest, row: RequestRow, checks: Sequence[Check], places: Sequence[Place], handling: Handling
    ) -> AsyncGenerator[Event, None]:
        """The events that the client sees, with the request's row closed at the end whatever happens."""
        status, error = "cancelled", None
        self._ledger.add(row)  # not before the first step: events that nobody ever reads could not close the row again
        try:
            held_back = handling.decision.buffered
            cascade = self._checked if held_back else self._direct
            async with aclosing(cascade(request, row.id, checks, places, handling)) as events:
                async for event in events:
                    if isinstance(event, Failure):
                        status, error = "failed", event.code
                    yield event
            if status != "failed":
                status = "done"
        finally:
            done = replace(row, route=handling.route, status=status, finished_ts=time.time(), error_code=error)
            self._ledger.add(done)

    async def _direct(
        self, request: ChatRequest, request_id: str, checks: Sequence[Check], places: Sequence[Place], handling: Handling
    ) -> AsyncGenerator[Event, None]:
        """Stream at once. A place that fails before its first word hands over to the next; checks are only recorded."""
        for n, place in enumerate(places):
            attempt = self._begin(request_id, n, place, handling)
            begun = False
            async with aclosing(attempt_events(request, attempt, keep=bool(checks))) as events:
                async for event in events:
                    if isinstance(event, Failure) and not begun and _next_may_do_better(event, n, places):
                        break
                    begun = True
                    if isinstance(event, Finish) and len(attempt.finishes) == request.sampling.n:
                        await self._close(request, checks, attempt)
                    yield event
            attempt.over(accepted=False)
            if begun:
                return

    async def _checked(
        self, request: ChatRequest, request_id: str, checks: Sequence[Check], places: Sequence[Place], handling: Handling
    ) -> AsyncGenerator[Event, None]:
        """Hold each answer back until its verdict; a failed one goes to the next place with the evidence."""
        asked = request
        last: Failure | list[Verdict] = []
        for n, place in enumerate(places):
            attempt = self._begin(request_id, n, place, handling)
            async with aclosing(attempt_events(asked, attempt, keep=True)) as events:
                async for _ in events:
                    pass
            if attempt.failure is not None:
                attempt.over(accepted=False)
                last = attempt.failure
                if not _next_may_do_better(attempt.failure, n, places):
                    break
                continue
            verdicts = await asyncio.to_thread(judge, asked, checks, attempt, self._ledger)
            accepted = all(v.passed for v in verdicts)
            attempt.over(accepted=accepted)
            if accepted:
                for event in attempt.events:
                    yield event
                return
            last, asked = verdicts, with_evidence(request, attempt, verdicts)
        yield last if isinstance(last, Failure) else _not_done(last, handling)

    def _begin(self, request_id: str, n: int, place: Place, handling: Handling) -> Attempt:
        attempt = Attempt(request_id, n, place, self._ledger)
        handling.attempts.append(attempt)
        handling.route = place.rung.name
        return attempt

    async def _close(self, request: ChatRequest, checks: Sequence[Check], attempt: Attempt) -> None:
        verdicts = await asyncio.to_thread(judge, request, checks, attempt, self._ledger) if checks else []
        attempt.over(accepted=all(v.passed for v in verdicts))


async def _checks(request: ChatRequest) -> tuple[Check, ...]:
    """What the answer must pass. A large schema takes seconds to validate: not in the event loop."""
    if request.response_format.kind == "text" and not request.extras.checks:
        return ()
    return await asyncio.to_thread(definitions.checks_of, request)


async def _measured(request: ChatRequest, place: Place) -> Rung:
    """The rung with the prompt's length, where that can matter: a prompt with fewer bytes than the context has tokens fits,
    and need not be counted."""
    if place.rung.supplier:
        return place.rung
    size = sum(len(m.text.encode("utf-8", "replace")) for m in request.messages) + sum(len(str(t)) for t in request.tools)
    if size < place.rung.model.context_length // 2:
        return place.rung
    try:
        return replace(place.rung, prompt_tokens=await asyncio.to_thread(place.backend.count_tokens, request))
    except BaseloadError:
        return place.rung  # the backend itself will say what is wrong with the prompt


def _next_may_do_better(failure: Failure, n: int, places: Sequence[Place]) -> bool:
    """What the local model refuses, or is too busy for, is not bought; what one supplier refuses another may take."""
    if n + 1 >= len(places):
        return False
    return bool(places[n].rung.supplier) or (failure.status not in CLIENTS_FAULT and failure.status != 429)


def _rung_decision(place: Place, verdict: Denied | None) -> RungDecision:
    name = place.rung.name
    return RungDecision(name, True) if verdict is None else RungDecision(name, False, verdict.gate, verdict.reason)


def _not_done(verdicts: Sequence[Verdict], handling: Handling) -> Failure:
    """No place gave an answer that passes: which checks failed, and why nobody else was asked."""
    why = "; ".join(f"{v.check}: {v.evidence}" for v in verdicts if not v.passed)
    if not any(a.place.rung.supplier for a in handling.attempts):
        denied = [f"{r.name}: {r.reason}" for r in handling.decision.rungs if not r.allowed]
        denied = denied or ["no supplier is configured for it"]
        message = f"The answer did not pass its checks ({why}), and it may not be escalated ({'; '.join(denied)})."
        return Failure(message, 403, "permission_error", "escalation_denied")
    return Failure(f"No answer passed its checks ({why}).", 502, "server_error", "checks_failed")
