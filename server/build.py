"""The rooms put together: ledger, door, engine, suppliers and router, each handed what it may not import."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
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
from ..runtime.replica_sets import parse_replicas
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
from .services import Services, nothing_to_close
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
    profiles = load_profiles(CONFIGS / "suppliers", settings.suppliers)
    allowed = frozenset(settings.router.allowed_suppliers)
    hardware = machine_cost.profile(settings.hardware.profile)
    ledger = Ledger.open(
        settings.ledger.url or default_url(),
        required=settings.ledger.required,
        keep_text=settings.ledger.keep_text,
        keep_text_days=settings.ledger.keep_text_days,
    )
    ledger.reconcile()
    keyring, purse = Keyring(ledger.engine), Purse(ledger.engine)
    loader = Loader(load_options(settings.engine))
    shelf: Shelf[Engine] = Shelf(settings.engine.memory_mb << 20)
    local: list[LocalBackend] = []
    pools: list[Pool] = []
    children: list[Vllm] = []
    embedders: dict[str, Embedder] = {}
    pooled: dict[str, PooledEmbedder] = {}
    remote: dict[str, tuple[SupplierProfile, Backend]] = {}
    clients: list[HttpBackend] = []
    routers: list[Router] = []
    stop_tracing = nothing_to_close
    busy = never_falling(lambda: [(id(engine), engine.stats().device_seconds) for engine in shelf.loaded.values()])
    sampler = Sampler(meters.find(), hardware, busy, ledger.add)
    ledger.machine = Machine(hardware, sampler)

    async def close() -> None:
        for router in routers:
            await router.close()
        await asyncio.to_thread(sampler.close)
        await shelf.close()
        for child in children:
            await child.close()
        for pool in pools:
            await pool.close()
        for backend in (*local, *embedders.values()):
            backend.close()
        loader.close()
        for client in clients:
            await client.close()
        await stop_tracing()
        await asyncio.to_thread(keyring.close)
        await asyncio.to_thread(purse.close)
        await asyncio.to_thread(ledger.close)

    try:
        sets = parse_replicas(settings.replicas, air_gap=settings.router.air_gap)
        ours = [host for one in sets for host in one.hosts]
        hosts = [p.host for p in profiles.values() if p.name in allowed]
        egress = door(settings, ledger, [*ours, *hosts, *tracing.host(settings.telemetry)])
        if (spans := tracing.begin(settings.telemetry, egress)) is not None:
            ledger.watch, stop_tracing = spans.saw, spans.close
        by_vllm = settings.models.engine == "vllm"
        chat = [] if by_vllm else [(name, path) for name, path in files if not is_encoder(path)]
        if not chat and not sets and not by_vllm:
            raise ModelFileError("none of the models answers chats: give one with --model first")
        for name, path in () if by_vllm else files:
            if is_encoder(path):
                embedders[name] = await asyncio.to_thread(Embedder, name, path)
        for name, path in chat:
            opened = await asyncio.to_thread(loader.open, path)
            shelf.add(name, partial(loader.start, opened), opened.nbytes)
            known = catalogue().get(name)
            wishes = known.sampling if known else None
            lend = partial(shelf.lend, name)
            most = settings.engine.max_output
            pooled[name] = PooledEmbedder(opened.model, lend, opened.longest)
            local.append(LocalBackend(opened.model, lend, name, opened.longest, sampling=wishes, max_output=most))
        if chat:
            async with shelf.lend(chat[0][0]):
                pass
        share = WallShare()
        for name, path in files if by_vllm else ():
            children.append(await Vllm.open(vllm_options(settings.vllm, name, path), egress, share))
            pools.append(children[-1].pool)
        for one in sets:
            pools.append(one.pool(egress, share))
            await pools[-1].start()
        for name, profile in profiles.items():
            clients.append(HttpBackend(profile.connection(), profile.models, egress))
            remote[name] = (profile, profile.guarded(clients[-1]))
        forecaster = Forecaster(default_root() / "router", partial(TextEncoder, EMBEDDER), ledger.engine)
        here = [*local, *pools]
        router = Router(here, remote, policy_of(settings), ledger, partial(_waiting, shelf), forecaster, purse)
        routers.append(router)
        jobs = load_jobs([CONFIGS / "jobs", default_root() / "jobs"])
        sampler.start()
    except BaseException:
        await close()
        raise
    breakers = partial(_breakers, {name: backend for name, (_, backend) in remote.items()})
    books = {"accounts": ledger.accounts, "breakers": breakers}
    learns = {"audited": forecaster.look_at_audits, "drifts": lambda: forecaster.drifts}
    beside = {"pools": pools, "more_metrics": [child.metrics for child in children]}
    vectors = embedders | pooled
    return Services(router, ledger, lambda: shelf.loaded, vectors, jobs, close, keyring, **learns, **books, **beside)


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
