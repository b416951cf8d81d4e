"""Names to places, gates, and the cascade: `Router.handle` is the way of every request."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..ledger.ledger import Ledger
from ..ledger.purse import Purse
from ..ledger.rows import RequestRow
from ..ledger.scopes import EVERYTHING, Scopes
from ..wire.backend import Backend, ModelInfo, Tokenizing
from ..wire.chat import ChatRequest
from ..wire.errors import BadRequest, BaseloadError, Forbidden, ModelNotFound
from . import checks as definitions
from .budget import most_tokens
from .cascade import Place
from .checks import Answer, Check
from .conversation import Conversations
from .decision import Decision, RungDecision
from .judging import question
from .placement import first_of
from .plan import Plan, Predictor, plan
from .policy import Denied, Policy, Rung
from .policy import judge as gate
from .run import Handling, Run
from .sandbox import Permissions
from .shadow import Shadows
from .suppliers.profile import SupplierProfile

AUTO, LOCAL, JOB = "auto", "local", "job:"
RESERVED = (AUTO, LOCAL)


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Who asks."""

    request_id: str
    key_id: str | None = None
    scopes: Scopes = EVERYTHING  # of the key
    job: str | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """What a model name means."""

    mode: Literal["local", "auto", "supplier"]
    places: tuple[Place, ...]  # in the order of trying


class Router:
    """Decides where requests run, and runs them. `local` are the served models; the first is called `local`."""

    def __init__(
        self,
        local: Sequence[Backend],
        suppliers: Mapping[str, tuple[SupplierProfile, Backend]],
        policy: Policy,
        ledger: Ledger,
        waiting: Callable[[], int] = lambda: 0,
        predictor: Predictor | None = None,
        purse: Purse | None = None,
    ) -> None:
        """`waiting`: how many requests wait for the local models now; `purse`: the budgets that suppliers are paid from."""
        self._purse = purse
        self._policy, self._ledger, self._waiting, self._predictor = policy, ledger, waiting, predictor
        self._conversations, self._shadows = Conversations(), Shadows(policy.shadow, ledger)
        self._local = {b.models[0].id: Place(Rung(b.models[0].id, b.models[0]), b) for b in local}
        self._remote = {
            model.id: Place(Rung(model.id, model, name, profile.not_ready), backend, profile.price_provider or profile.name)
            for name, (profile, backend) in suppliers.items()
            for model in profile.models
        }
        for name in self._local:
            if name in RESERVED or name.startswith(JOB):
                raise BadRequest(f"A model cannot be called {name!r}: the name is reserved.")
        known = {*self._local, *self._remote, LOCAL}
        for name, where in [(name, "ladder") for name in policy.ladder] + [(rule.place, "rules") for rule in policy.rules]:
            if name not in known:
                raise BadRequest(f"The {where} name {name!r}, which is no served model, and no configured supplier has it.")

    async def close(self) -> None:
        """Stop what runs without a client."""
        await self._shadows.close()

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
            places = {p.rung.name: p for p in (first, *(self._place(rung) for rung in self._policy.ladder))}
            return Target("auto", tuple(places.values()))
        if name in self._remote:
            return Target("supplier", (self._remote[name],))
        raise ModelNotFound(f"The model {name[:80]!r} does not exist.", param="model")

    def _judges(self, request: ChatRequest, checks: Sequence[Check], policy: Policy) -> dict[str, Place]:
        """The models that the checks want to ask, by the names that they give. Raises ModelNotFound, and a gate's error."""
        named = {check.get("model") or LOCAL for check in checks if check["type"] == "judge"}
        places = {name: self.resolve(name).places[0] for name in named}
        for name, place in places.items():
            if name != LOCAL and not policy.key.may_ask(name):
                raise Forbidden(f"This key may not ask for the model {name[:80]!r}.", param="baseload.checks")
            if isinstance(verdict := gate(question({"rubric": ""}, Answer("", ""), request), policy, place.rung), Denied):
                raise verdict.error(f"{verdict.reason}.", param="baseload.checks")
        return places

    def _reviews(self, places: Sequence[Place]) -> bool:
        """Whether a local answer is to be held back until it has been looked at: there is somebody else to ask."""
        return self._predictor is not None and self._predictor.reads_answers and any(p.rung.supplier for p in places)

    def _place(self, name: str) -> Place:
        return self._local.get(name) or self._remote.get(name) or next(iter(self._local.values()))

    async def handle(self, request: ChatRequest, context: RequestContext) -> Handling:
        """Decide, and begin. The decision is written down with the first event, or at once where no place is left.

        Raises ModelNotFound, BadRequest (its checks), or the error of a gate.
        """
        target = self.resolve(request.model)
        policy, request = _for_key(self._policy, request, context.scopes)
        checks = await _checks(request, self._policy.permissions)
        if (
            self._policy.check_tools
            and target.mode == "auto"
            and request.tools
            and all(c["type"] != "tool_call" for c in checks)
        ):
            checks = (*checks, {"type": "tool_call"})  # alone: an answer that was cut off is no call that fits nothing
        judges = self._judges(request, checks, policy)
        rule = first_of(self._policy.rules, request) if target.mode == "auto" else None
        ruled = self._place(rule.place) if rule else None
        extra = (ruled,) if ruled and ruled not in target.places else ()
        judged = [(place, await _judge(request, place, policy)) for place in (*target.places, *extra)]
        allowed = [place for place, verdict in judged if verdict is None]
        conversation = self._conversations.of(request, context.key_id)
        planned = Plan(tuple(allowed))
        if target.mode == "auto" and allowed:
            asks = self._predictor is not None and rule is None and len(allowed) > 1
            forecast = await asyncio.to_thread(self._predictor.forecast, request) if asks and self._predictor else None
            planned = plan(request, allowed, self._policy, conversation, self._waiting(), forecast, rule and (rule, ruled))
        decision = Decision(
            asked=request.model,
            mode=target.mode,
            rungs=tuple(_rung_decision(place, verdict) for place, verdict in judged),
            checks=tuple(c["type"] for c in checks),
            buffered=target.mode == "auto" and bool(checks or self._reviews(allowed)),
            notes=planned.notes,
        )
        row = RequestRow(
            id=context.request_id,
            ts=time.time(),
            protocol=request.protocol,
            model_asked=request.model,
            decision=decision.as_json(),
            stream=request.stream,
            key_id=context.key_id,
            job=context.job,
            task_class=request.extras.task or None,
            session=request.extras.session or None,
            data_class=request.extras.data_class or None,
            budget_usd=request.extras.budget_usd,
        )
        if not planned.places:
            ruled_out = Denied("rule", planned.notes[-1].why if planned.notes else "no place is left")
            denied = next((verdict for _, verdict in judged if verdict is not None), ruled_out)
            self._ledger.add(replace(row, status="failed", finished_ts=time.time(), error_code=denied.gate))
            raise denied.error(f"{denied.reason}.", param="model" if denied.gate != "context" else "messages")
        handling = Handling(decision, "" if decision.buffered else planned.places[0].rung.name, conversation)
        reviewer = self._predictor if self._reviews(planned.places) else None
        means = (self._policy, self._ledger, reviewer, judges, self._shadows, self._purse)
        run = Run(request, row, checks, planned.places, handling, *means)
        handling.events = run.events()
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

    def _may_leave(self, rung: Rung) -> bool:
        return not isinstance(gate(ChatRequest(rung.name), self._policy, rung), Denied)


def _for_key(policy: Policy, request: ChatRequest, scopes: Scopes) -> tuple[Policy, ChatRequest]:
    """Both as they are for a key: what a key with one class of data sends without naming any is of that class."""
    only = scopes.data_classes if scopes.data_classes and len(scopes.data_classes) == 1 else ()
    if only and not (request.extras.data_class or policy.data_class):
        request = replace(request, extras=replace(request.extras, data_class=next(iter(only))))
    return (policy if scopes == policy.key else replace(policy, key=scopes)), request


async def _judge(request: ChatRequest, place: Place, policy: Policy) -> Denied | None:
    verdict = gate(request, policy, await _measured(request, place))
    return verdict if isinstance(verdict, Denied) else None


async def _checks(request: ChatRequest, permissions: Permissions) -> tuple[Check, ...]:
    """What the answer must pass. A large schema takes seconds to validate: not in the event loop."""
    if request.response_format.kind == "text" and not request.extras.checks:
        return ()
    return await asyncio.to_thread(definitions.checks_of, request, permissions)


async def _measured(request: ChatRequest, place: Place) -> Rung:
    """The rung with the prompt's length, where that can matter: a prompt with fewer bytes than the context has tokens fits,
    and need not be counted."""
    if place.rung.supplier:
        return place.rung
    if most_tokens(request) < place.rung.model.context_length:
        return place.rung
    try:
        return replace(place.rung, prompt_tokens=await asyncio.to_thread(place.backend.count_tokens, request))
    except BaseloadError:
        return place.rung  # the backend itself will say what is wrong with the prompt


def _rung_decision(place: Place, verdict: Denied | None) -> RungDecision:
    name = place.rung.name
    return RungDecision(name, True) if verdict is None else RungDecision(name, False, verdict.gate, verdict.reason)
