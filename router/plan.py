"""In which order the places are tried for a request to `auto`, and why: what the policy, the conversation and the queue say.

The gates have spoken before; nothing here lets a request go where they have forbidden it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..wire.chat import ChatRequest
from .cascade import Place
from .conversation import Conversation, in_tool_loop, stalled
from .decision import Note
from .placement import Rule
from .policy import Policy


@dataclass(frozen=True, slots=True)
class Plan:
    """Places in the order of trying, and the reasons for it."""

    places: tuple[Place, ...]
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a predictor says: how much likelier a supplier is to do well than the local model, and from where on to ask it."""

    gap: float
    threshold: float
    known: bool = True  # False: the request is like none that was learned from; the gap is its class's
    numbers: Mapping[str, float] = field(default_factory=dict)
    why: str = ""  # where another reason than the gap decides


class Predictor(Protocol):
    """What forecasts. Called outside of the event loop; None where it has nothing to say."""

    def forecast(self, request: ChatRequest) -> Forecast | None:
        """Before anybody is asked."""
        ...

    @property
    def reads_answers(self) -> bool:
        """Whether it has something to say of a local answer."""
        ...

    @property
    def wants(self) -> frozenset[str]:
        """Signals of a local answer beside its text that it reads: see probes.py."""
        ...

    def review(self, request: ChatRequest, answer: str, signals: Mapping[str, float]) -> Forecast | None:
        """After the local model's `answer`."""
        ...


def plan(
    request: ChatRequest,
    places: Sequence[Place],
    policy: Policy,
    conversation: Conversation,
    waiting: int,
    forecast: Forecast | None,
    ruled: tuple[Rule, Place | None] | None = None,
) -> Plan:
    """The order for `places`, all of which the gates allow. The first reason that holds decides. `waiting`: requests in the
    local model's queue; `ruled`: the rule that the request falls under, and its place."""
    if ruled is not None:
        rule, chosen = ruled
        others = () if rule.only else tuple(p for p in places if p is not chosen)
        if chosen is not None and chosen in places:
            return Plan((chosen, *others), (Note("rule", f"{rule.name}: {rule.place}{' only' if rule.only else ''}"),))
        if rule.only:
            return Plan((), (Note("rule", f"{rule.name}: {rule.place} only, which is not allowed"),))
    if why := stalled(request):
        return _suppliers_first(places, Note("stall", why))
    if policy.latch and in_tool_loop(request):
        held = [p for p in places if p.rung.name == conversation.place]
        if held:
            note = Note("latch", f"{conversation.place} has called the tool and gets its result")
            return Plan((*held, *(p for p in places if p not in held)), (note,))
    if policy.spill_waiting and waiting >= policy.spill_waiting:
        why = f"{waiting} requests wait for the local model"
        return _suppliers_first(places, Note("queue", why, {"waiting": waiting, "limit": policy.spill_waiting}))
    if forecast is not None:
        numbers = {"gap": forecast.gap, "threshold": forecast.threshold, **forecast.numbers}
        kind = "a supplier is likelier to do it" if forecast.gap > forecast.threshold else "the local model will do"
        kind = forecast.why or kind
        note = Note("predictor", kind if forecast.known else f"{kind} (unfamiliar: by its class)", numbers)
        if forecast.gap > forecast.threshold:
            return _suppliers_first(places, note)
        return Plan(tuple(places), (note,))
    return Plan(tuple(places))


def _suppliers_first(places: Sequence[Place], note: Note) -> Plan:
    return Plan((*(p for p in places if p.rung.supplier), *(p for p in places if not p.rung.supplier)), (note,))
