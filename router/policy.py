"""Hard gates: pure functions (request, policy, rung) -> Allowed | Denied. A denial is final; no later stage undoes it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..ledger.scopes import EVERYTHING, Scopes
from ..wire.backend import ModelInfo
from ..wire.chat import ChatRequest, Image
from ..wire.errors import BadRequest, BaseloadError, ContextLengthExceeded, EgressDenied, Forbidden
from .placement import Rule
from .sandbox import Permissions

NOTHING = Permissions()


@dataclass(frozen=True, slots=True)
class Policy:
    """What the house allows. An empty `allowed_suppliers` allows none."""

    air_gap: bool = False
    allowed_suppliers: frozenset[str] = frozenset()
    ladder: tuple[str, ...] = ()  # after the first local model: local models, or "supplier/model", in the order of trying
    data_classes: Mapping[str, frozenset[str]] | None = None  # the suppliers that may see each; an unlisted class goes nowhere
    data_class: str = ""  # of requests that name none
    repairs: int = 0  # more tries of a local model, with the evidence, before the next place
    max_attempts: int = 6
    max_usd: float = 0.0  # for one request, and for one conversation; 0: no limit of this kind
    conversation_usd: float = 0.0
    check_tools: bool = False  # calls must be of the request's tools and fit their schemas, or the next place is asked
    latch: bool = True  # who has called a tool gets its result
    spill_waiting: int = 0  # so many requests waiting for the local model: the next go to suppliers first; 0: never
    shadow: float = 0.0  # share of kept answers that a supplier gives too, to learn from
    rules: tuple[Rule, ...] = ()
    permissions: Permissions = NOTHING  # what checks may run
    key: Scopes = EVERYTHING  # what the key may do that this request came with


@dataclass(frozen=True, slots=True)
class Rung:
    """One place where a request could run. `supplier` is empty for the local model; `prompt_tokens` None where unknown."""

    name: str
    model: ModelInfo
    supplier: str = ""
    not_ready: str = ""
    prompt_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Allowed:
    """The gate lets the request pass."""


@dataclass(frozen=True, slots=True)
class Denied:
    """The gate does not. `error` is what a client with no other rung is told."""

    gate: str
    reason: str
    error: type[BaseloadError] = Forbidden


Gate = Callable[[ChatRequest, Policy, Rung], Allowed | Denied]


def air_gap(request: ChatRequest, policy: Policy, rung: Rung) -> Allowed | Denied:
    """In an air gap only the local model runs."""
    if rung.supplier and policy.air_gap:
        return Denied("air_gap", "this server runs in an air gap; nothing leaves the machine", EgressDenied)
    return Allowed()


def supplier_allowed(request: ChatRequest, policy: Policy, rung: Rung) -> Allowed | Denied:
    """Suppliers are denied unless the configuration names them."""
    if rung.supplier and rung.supplier not in policy.allowed_suppliers:
        return Denied("supplier", f"the supplier {rung.supplier} is not among the allowed ones", EgressDenied)
    return Allowed()


def request_allows(request: ChatRequest, policy: Policy, rung: Rung) -> Allowed | Denied:
    """A request may forbid that it leaves."""
    if rung.supplier and not request.extras.allow_suppliers:
        return Denied("request", "the request does not allow suppliers")
    return Allowed()


def data_may_leave(request: ChatRequest, policy: Policy, rung: Rung) -> Allowed | Denied:
    """What is of a class goes to the suppliers that the class names."""
    named = request.extras.data_class or policy.data_class
    if not rung.supplier or not named:
        return Allowed()
    if rung.supplier in (policy.data_classes or {}).get(named, frozenset()):
        return Allowed()
    return Denied("data_class", f"data of the class {named[:60]!r} may not go to {rung.supplier}")


def key_allows(request: ChatRequest, policy: Policy, rung: Rung) -> Allowed | Denied:
    """A key may be kept from suppliers, and to classes of data."""
    if rung.supplier and not policy.key.may_call(rung.supplier):
        return Denied("key", f"this key may not use the supplier {rung.supplier}")
    classes, named = policy.key.data_classes, request.extras.data_class or policy.data_class
    if classes is not None and named not in classes:
        what = f"data of the class {named[:60]!r}" if named else "data of no class"
        return Denied("key", f"this key may not send {what}, only of {', '.join(sorted(classes))}")
    return Allowed()


def supplier_ready(request: ChatRequest, policy: Policy, rung: Rung) -> Allowed | Denied:
    """A supplier without its key cannot be called."""
    return Denied("ready", f"{rung.supplier}: {rung.not_ready}") if rung.not_ready else Allowed()


def plain_completion_is_local(request: ChatRequest, policy: Policy, rung: Rung) -> Allowed | Denied:
    """A prompt without messages has no meaning in a chat protocol."""
    if rung.supplier and request.prompt is not None:
        return Denied("capability", "plain completions run on the local model only", BadRequest)
    return Allowed()


def fits_context(request: ChatRequest, policy: Policy, rung: Rung) -> Allowed | Denied:
    """The prompt and at least one token of an answer must fit."""
    if rung.prompt_tokens is not None and rung.prompt_tokens >= rung.model.context_length:
        reason = (
            f"{rung.name}'s maximum context length is {rung.model.context_length} tokens. "
            f"However, your prompt has {rung.prompt_tokens} tokens"
        )
        return Denied("context", reason, ContextLengthExceeded)
    return Allowed()


def sees_images(request: ChatRequest, policy: Policy, rung: Rung) -> Allowed | Denied:
    """Images need a model that sees."""
    has_image = any(isinstance(b, Image) for m in request.messages for b in m.content)
    if has_image and not rung.model.vision:
        return Denied("vision", f"{rung.name} does not take images", BadRequest)
    return Allowed()


def calls_tools(request: ChatRequest, policy: Policy, rung: Rung) -> Allowed | Denied:
    """Tools are not bought from a model that can't call them. A local one may answer all the same, in words."""
    if rung.supplier and request.tools and request.tool_choice != "none" and not rung.model.tools:
        return Denied("tools", f"{rung.name} does not call tools", BadRequest)
    return Allowed()


GATES: tuple[Gate, ...] = (
    air_gap,
    supplier_allowed,
    request_allows,
    data_may_leave,
    key_allows,
    supplier_ready,
    plain_completion_is_local,
    fits_context,
    sees_images,
    calls_tools,
)


def judge(request: ChatRequest, policy: Policy, rung: Rung) -> Allowed | Denied:
    """The first denial, or Allowed."""
    verdicts = (gate(request, policy, rung) for gate in GATES)
    return next((v for v in verdicts if isinstance(v, Denied)), Allowed())
