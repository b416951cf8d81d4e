"""The rooms put together: ledger, door, engine, suppliers and router, each handed what it may not import."""

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..harness.job import load_jobs
from ..ledger.ledger import Ledger, default_url
from ..ledger.rows import EgressRow
from ..router import Policy, Router
from ..router.suppliers.profile import SupplierProfile, load_profiles
from ..router.suppliers.resilience import Resilient
from ..runtime.engine import Engine, EngineConfig
from ..runtime.local_backend import LocalBackend
from ..runtime.models.model_file import LoadedModel, load_model
from ..runtime.store import default_root
from ..wire.client import HttpBackend
from ..wire.egress import Egress, EgressRecord
from ..wire.errors import ModelFileError
from .services import Services
from .settings import EngineSettings, Settings

log = logging.getLogger("baseload.server")
CONFIGS = Path(__file__).parents[1] / "configs"


def door(settings: Settings, ledger: Ledger, hosts: Sequence[str]) -> Egress:
    """The egress door, with the ledger as its book."""

    async def record(entry: EgressRecord) -> None:
        await ledger.add_synced(EgressRow(**asdict(entry)))

    return Egress(frozenset(hosts), record, air_gap=settings.router.air_gap)


async def build_services(settings: Settings, files: Sequence[tuple[str, Path]]) -> Services:
    """Load the models `files` (name, path; the first is `local`) and start everything. Raises BaseloadError, in one line."""
    profiles = load_profiles(CONFIGS / "suppliers", settings.suppliers)
    allowed = frozenset(settings.router.allowed_suppliers)
    ledger = Ledger.open(settings.ledger.url or default_url())
    ledger.reconcile()
    engines: list[Engine] = []
    local: list[LocalBackend] = []
    remote: dict[str, tuple[SupplierProfile, Resilient]] = {}
    clients: list[HttpBackend] = []

    async def close() -> None:
        for engine in engines:
            await engine.drain(0)
            engine.close()
        for backend in local:
            backend.close()
        for client in clients:
            await client.close()
        await asyncio.to_thread(ledger.close)

    try:
        egress = door(settings, ledger, [p.host for p in profiles.values() if p.name in allowed])
        for name, path in files:
            model, engine = await asyncio.to_thread(load_engine, path, settings.engine)
            engines.append(engine)
            local.append(LocalBackend(model, engine, name))
            engine.start()
        for name, profile in profiles.items():
            clients.append(HttpBackend(profile.connection(), profile.models, egress))
            remote[name] = (profile, Resilient(clients[-1], name))
        policy = Policy(settings.router.air_gap, allowed, settings.router.ladder)
        router = Router(local, remote, policy, ledger)
        jobs = load_jobs([CONFIGS / "jobs", default_root() / "jobs"])
    except BaseException:
        await close()
        raise
    return Services(router, ledger, engines[0], files[0][0], jobs, close)


def load_engine(path: Path, settings: EngineSettings) -> tuple[LoadedModel, Engine]:
    """A model on an engine that is not started yet. Raises ModelFileError."""
    import torch  # slow to import: not before a model is really loaded

    from ..runtime.engine.model_runner import page_bytes
    from ..runtime.engine.torch_runner import TorchRunner

    torch.set_num_threads(settings.threads or os.cpu_count() or 1)
    model = load_model(path)
    one = page_bytes(model.config.decoder, settings.page_size)
    config = EngineConfig(
        n_pages=max(1, (settings.kv_memory_mb << 20) // one),
        page_size=settings.page_size,
        max_batch=settings.max_batch,
        token_budget=settings.token_budget,
        max_queue=settings.max_queue,
        watchdog_s=settings.watchdog_s,
    )
    runner = TorchRunner(model, config.n_pages, config.page_size)
    try:
        model.template.check()
    except ModelFileError as error:
        log.warning("%s: %s; only /v1/completions will work", path.name, error.message)
    tokens = config.n_pages * config.page_size
    log.info("%s: %s, %s, KV cache of %d tokens", path.name, model.config.family, runner.describe(), tokens)
    return model, Engine(runner, model.tokenizer, config)
