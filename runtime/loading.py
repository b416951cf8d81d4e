"""A model file to an engine that is not started yet: the kernels that run it, the pool that fits, the limits."""

import hashlib
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..kernels.cpu.library import NativeUnavailable, Pool
from ..kernels.dispatch import choose, n_threads
from ..wire.errors import ModelFileError
from .engine import Engine, EngineConfig
from .engine.kv_store import KvStore
from .engine.model_runner import DescribedRunner
from .models.model_file import LoadedModel, load_model

if TYPE_CHECKING:
    from .engine.native_runner import NativeRunner

log = logging.getLogger("baseload.runtime")

RESTORED_BYTES = 8 << 20  # read back from the store in one step: 12 to 50 ms, so that those who decode hardly notice


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How models are loaded. `config.n_pages` is replaced by what `kv_memory_mb` holds."""

    config: EngineConfig
    kv_memory_mb: int
    threads: int = 0  # 0: one for each core
    kernels: str = "auto"  # "auto", "native" or "torch"
    kv_disk: Path | None = None  # the folder where KV pages outlive the process; None: they don't
    kv_disk_mb: int = 2048  # how many of them, for each model


class Loader:
    """Loads models; those on a CPU share one pool of threads, made when the first needs it."""

    def __init__(self, options: LoadOptions) -> None:
        self._options = options
        self._pool: Pool | None = None
        self._beside = ThreadPoolExecutor(1, "digest")  # reads a file once more while its weights are packed

    def load(self, path: Path) -> tuple[LoadedModel, Engine]:
        """A model and its engine. Raises ModelFileError, in one line."""
        model = load_model(path)
        try:
            runner, config, store = self._runner(model)
        except NativeUnavailable as error:
            raise ModelFileError(f"{path.name}: {error}") from error
        try:
            model.template.check()
        except ModelFileError as error:
            log.warning("%s: %s; only /v1/completions will work", path.name, error.message)
        tokens = config.n_pages * config.page_size
        log.info("%s: %s, %s, KV cache of %d tokens", path.name, model.config.family, runner.describe(), tokens)
        return model, Engine(runner, model.tokenizer, config, store=store)

    def close(self) -> None:
        """Stop the threads. The engines must be closed."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        self._beside.shutdown(wait=False, cancel_futures=True)

    def _runner(self, model: LoadedModel) -> tuple[DescribedRunner, EngineConfig, KvStore | None]:
        options, spec = self._options, model.config.decoder
        size = options.config.page_size
        implementation, reason = choose(spec, size, options.kernels)
        if implementation == "native":
            from .engine.native_runner import NativeRunner, page_bytes

            config = self._sized(page_bytes(spec, size))
            self._pool = self._pool or Pool(n_threads(options.threads))
            digest = self._beside.submit(lambda: model.digest) if options.kv_disk else None
            runner = NativeRunner(model, config.n_pages, size, self._pool)
            return runner, config, self._store(runner, digest) if digest else None
        log.warning("%s: answers will be slow, computed by torch: %s", model.path.name, reason)
        import torch  # takes seconds and hundreds of MB

        from .engine.model_runner import page_bytes as torch_page_bytes
        from .engine.torch_runner import TorchRunner

        torch.set_num_threads(n_threads(options.threads))
        config = self._sized(torch_page_bytes(spec, size))
        if options.kv_disk:
            log.info("%s: torch keeps its KV pages to itself; none are kept on disk", model.path.name)
        return TorchRunner(model, config.n_pages, size), config, None

    def _store(self, runner: "NativeRunner", digest: Future[str]) -> KvStore | None:
        def identity() -> bytes:
            return hashlib.blake2b(f"{digest.result()} {runner.layout}".encode(), digest_size=32).digest()

        assert self._options.kv_disk is not None
        store = KvStore(self._options.kv_disk, self._options.kv_disk_mb << 20, runner.pages, identity)
        store.start()
        return store

    def _sized(self, page_bytes: int) -> EngineConfig:
        n_pages = max(1, (self._options.kv_memory_mb << 20) // page_bytes)
        return replace(self._options.config, n_pages=n_pages, restored_pages=max(1, RESTORED_BYTES // page_bytes))
