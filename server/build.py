"""The rooms put together: ledger, door, engine, suppliers and router, each handed what it may not import."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from ..harness.job import load_jobs
from ..ledger import machine_cost, meters
from ..ledger.energy import Sampler
from ..ledger.ledger import Ledger, default_url
from ..ledger.machine import Machine, never_falling
from ..ledger.purse import Purse
from ..ledger.rows import EgressRow
from ..router import Policy, Router
from ..router.forecaster import Forecaster
from ..router.placement import parse_rules
from ..router.prompt_encoder import TextEncoder
from ..router.sandbox import Permissions
from ..router.suppliers.profile import SupplierProfile, load_profiles
from ..router.suppliers.resilience import Resilient
from ..runtime.catalogue import catalogue
from ..runtime.embedder import Embedder
from ..runtime.engine import Engine, EngineConfig
from ..runtime.engine_install import is_installed, python_of
from ..runtime.loading import Loader, LoadOptions
from ..runtime.local_backend import LocalBackend
from ..runtime.models.encoder import is_encoder
from ..runtime.pool import Pool
from ..runtime.pooled_embedder import PooledEmbedder
from ..runtime.replica_sets import ReplicaSet, parse_replicas
from ..runtime.shelf import Shelf
from ..runtime.store import default_root
from ..runtime.vllm_backend import Vllm, VllmOptions
from ..runtime.wall_share import WallShare
from ..wire.backend import Backend
from ..wire.client import HttpBackend
from ..wire.egress import Egress, EgressRecord
from ..wire.errors import ModelFileError
from . import tracing
from .keyring import Keyring
from .services import Services
from .settings import EngineSettings, Settings, VllmSettings

EMBEDDER = "all-minilm-l6-v2"  # of prompts, for a predictor that reads vectors
CONFIGS = Path(__file__).parents[1] / "configs"


def door(settings: Settings, ledger: Ledger, hosts: Sequence[str]) -> Egress:
    """The egress door, with the ledger as its book."""

    async def record(entry: EgressRecord) -> None:
        await ledger.add_synced(EgressRow(**asdict(entry)))

    return Egress(frozenset(hosts), record, air_gap=settings.router.air_gap)


async def build_services(settings: Settings, files: Sequence[tuple[str, Path]]) -> Services:
    """Open the models `files` (name, path; the first is `local`), load the first and start everything; the others are loaded
    when they are asked for. Raises BaseloadError, in one line."""
    # What was opened is closed, the last first, however the building ends, and whatever a closing raises.
    async with AsyncExitStack() as held:
        services = await _build(settings, files, held)
        return replace(services, close=held.pop_all().aclose)


async def _build(settings: Settings, files: Sequence[tuple[str, Path]], held: AsyncExitStack) -> Services:
    profiles = load_profiles(CONFIGS / "suppliers", settings.suppliers)
    hardware = machine_cost.profile(settings.hardware.profile)
    sets = parse_replicas(settings.replicas, air_gap=settings.router.air_gap)
    ledger = _ledger(settings, held)
    keyring, purse = Keyring(ledger.engine), Purse(ledger.engine)
    for book in (purse, keyring):
        held.push_async_callback(asyncio.to_thread, book.close)

    allowed = frozenset(settings.router.allowed_suppliers)
    hosts = [p.host for p in profiles.values() if p.name in allowed] + [host for one in sets for host in one.hosts]
    egress = door(settings, ledger, [*hosts, *tracing.host(settings.telemetry)])
    if (spans := tracing.begin(settings.telemetry, egress)) is not None:
        ledger.watch = spans.saw
        held.push_async_callback(spans.close)
    remote = {name: (profile, _supplier(profile, egress, held)) for name, profile in profiles.items()}

    by_vllm = settings.models.engine == "vllm"
    if not (by_vllm or sets) and all(is_encoder(path) for _, path in files):
        raise ModelFileError("none of the models answers chats: give one with --model first")
    models = await _models(settings.engine, () if by_vllm else files, held)
    share = WallShare()
    children = [await _child(settings.vllm, name, path, egress, share, held) for name, path in files if by_vllm]
    pools = [child.pool for child in children] + [await _pool(one, egress, share, held) for one in sets]

    shelf = models.shelf
    busy = never_falling(lambda: [(id(engine), engine.stats().device_seconds) for engine in shelf.loaded.values()])
    sampler = Sampler(meters.find(), hardware, busy, ledger.add)
    held.push_async_callback(asyncio.to_thread, sampler.close)
    ledger.machine = Machine(hardware, sampler)
    forecaster = Forecaster(default_root() / "router", partial(TextEncoder, EMBEDDER), ledger.engine)
    here = [*models.local, *pools]
    router = Router(here, remote, policy_of(settings), ledger, partial(_waiting, shelf), forecaster, purse)
    held.push_async_callback(router.close)
    sampler.start()
    return Services(
        router,
        ledger,
        lambda: shelf.loaded,
        models.embedders,
        load_jobs([CONFIGS / "jobs", default_root() / "jobs"]),
        keyring=keyring,
        audited=forecaster.look_at_audits,
        drifts=lambda: forecaster.drifts,
        accounts=ledger.accounts,
        breakers=partial(_breakers, {name: backend for name, (_, backend) in remote.items()}),
        pools=pools,
        more_metrics=[child.metrics for child in children],
    )


def _ledger(settings: Settings, held: AsyncExitStack) -> Ledger:
    told = settings.ledger
    url = told.url or default_url()
    ledger = Ledger.open(url, required=told.required, keep_text=told.keep_text, keep_text_days=told.keep_text_days)
    held.push_async_callback(asyncio.to_thread, ledger.close)
    ledger.reconcile()
    return ledger


def _supplier(profile: SupplierProfile, egress: Egress, held: AsyncExitStack) -> Backend:
    client = HttpBackend(profile.connection(), profile.models, egress)
    held.push_async_callback(client.close)
    return profile.guarded(client)


@dataclass(frozen=True)
class _Models:
    """Those of this process. `embedders`: encoders, and decoders for what they make of a text."""

    shelf: Shelf[Engine]
    local: list[LocalBackend]
    embedders: dict[str, Embedder | PooledEmbedder]


async def _models(settings: EngineSettings, files: Sequence[tuple[str, Path]], held: AsyncExitStack) -> _Models:
    """The first that answers chats is loaded."""
    made = _Models(Shelf(settings.memory_mb << 20), [], {})
    loader = Loader(load_options(settings))
    held.callback(loader.close)
    for name, path in files:
        if is_encoder(path):
            encoder = made.embedders[name] = await asyncio.to_thread(Embedder, name, path)
            held.callback(encoder.close)
            continue
        opened = await asyncio.to_thread(loader.open, path)
        made.shelf.add(name, partial(loader.start, opened), opened.nbytes)
        known, lend = catalogue().get(name), partial(made.shelf.lend, name)
        made.embedders[name] = PooledEmbedder(opened.model, lend, opened.longest)
        wishes = known.sampling if known else None
        backend = LocalBackend(opened.model, lend, name, opened.longest, sampling=wishes, max_output=settings.max_output)
        made.local.append(backend)
        held.callback(backend.close)
    held.push_async_callback(made.shelf.close)  # its engines end before what feeds them
    for backend in made.local[:1]:
        async with made.shelf.lend(backend.models[0].id):
            pass
    return made


async def _child(settings: VllmSettings, name: str, path: Path, egress: Egress, share: WallShare, held: AsyncExitStack) -> Vllm:
    child = await Vllm.open(vllm_options(settings, name, path), egress, share)
    held.push_async_callback(child.pool.close)
    held.push_async_callback(child.close)
    return child


async def _pool(one: ReplicaSet, egress: Egress, share: WallShare, held: AsyncExitStack) -> Pool:
    pool = one.pool(egress, share)
    held.push_async_callback(pool.close)
    await pool.start()
    return pool


def _breakers(remote: Mapping[str, Backend]) -> dict[tuple[str, str], bool]:
    """(supplier, model) -> whether it is left alone for now."""
    guarded = ((name, backend) for name, backend in remote.items() if isinstance(backend, Resilient))
    return {(name, model): is_open for name, backend in guarded for model, is_open in backend.breakers().items()}


def _waiting(shelf: Shelf[Engine]) -> int:
    return sum(engine.stats().waiting for engine in shelf.loaded.values())


def policy_of(settings: Settings) -> Policy:
    """The policy in the settings. Raises RuleError."""
    told = settings.router
    return Policy(
        told.air_gap,
        frozenset(told.allowed_suppliers),
        told.ladder,
        data_classes={name: frozenset(suppliers) for name, suppliers in settings.data_classes.items()},
        data_class=told.data_class,
        repairs=told.repairs,
        max_attempts=told.max_attempts,
        max_usd=told.max_usd,
        conversation_usd=told.conversation_usd,
        check_tools=told.check_tools,
        latch=told.latch,
        spill_waiting=told.spill_waiting,
        shadow=told.shadow,
        rules=parse_rules(settings.rules),
        permissions=Permissions(told.code_checks, frozenset(told.commands)),
    )


def vllm_options(settings: VllmSettings, name: str, model: Path) -> VllmOptions:
    """vLLM's settings, as the runtime takes them."""
    named = settings.python or os.environ.get("VLLM_PYTHON")
    if not named and not is_installed(default_root(), "vllm"):
        raise ModelFileError("vLLM is not installed: run `baseload pull --engine vllm`, or name its interpreter in VLLM_PYTHON")
    python = Path(named).expanduser() if named else python_of(default_root(), "vllm")
    return VllmOptions(python, str(model), name, settings.args, settings.start_s)


def load_options(settings: EngineSettings) -> LoadOptions:
    """The engine's settings, as the runtime takes them."""
    config = EngineConfig(
        page_size=settings.page_size,
        max_batch=settings.max_batch,
        token_budget=settings.token_budget,
        max_guess=settings.max_guess,
        max_queue=settings.max_queue,
        watchdog_s=settings.watchdog_s,
    )
    kv_disk = default_root() / "kv" if settings.kv_disk_mb else None
    return LoadOptions(
        config, settings.kv_memory_mb, settings.threads, settings.kernels, kv_disk, settings.kv_disk_mb, settings.isa
    )
