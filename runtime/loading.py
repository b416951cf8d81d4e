"""A model file to a running engine: the kernels that run it, the pool that fits, the limits."""

import hashlib
import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from ..kernels.cpu.library import NativeUnavailable, Pool
from ..kernels.cpu.step import page_bytes as native_page_bytes
from ..kernels.dispatch import Implementation, choose, n_threads
from ..wire.errors import ModelFileError
from .engine import Engine, EngineConfig
from .engine.kv_store import KvStore
from .engine.model_runner import DescribedRunner
from .engine.model_runner import page_bytes as torch_page_bytes
from .engine.native_runner import NativeRunner
from .models.model_file import LoadedModel, load_model
from .receipts import identity_of

log = logging.getLogger("baseload.runtime")

RESTORED_BYTES = 8 << 20  # read back from the store in one step: 12 to 50 ms, so that those who decode hardly notice


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How models are loaded. `config.n_pages` is replaced by what `kv_memory_mb` holds."""

    config: EngineConfig
    kv_memory_mb: int
    threads: int = 0  # 0: one for each core
    kernels: str = "auto"  # "auto", "cuda", "native" or "torch"
    kv_disk: Path | None = None  # the folder where KV pages outlive the process; None: they don't
    kv_disk_mb: int = 2048  # how many of them, for each model
    isa: str = "auto"  # of the native step; "auto": the best that the machine has


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model that can be started: all but its weights."""

    model: LoadedModel
    implementation: Implementation
    config: EngineConfig
    page_bytes: int

    @property
    def nbytes(self) -> int:
        """Memory that it will need at most: its file, and its KV cache."""
        path = self.model.path
        files = path.glob("*.safetensors") if path.is_dir() else [path]
        pool = self.config.n_pages * self.page_bytes if self.implementation != "cuda" else 0  # there it is the GPU's
        return sum(file.stat().st_size for file in files) + pool

    @property
    def longest(self) -> int:
        """The longest sequence, prompt and answer, in tokens."""
        return min(self.model.config.decoder.context_length, self.config.n_pages * self.config.page_size)


class Loader:
    """Loads models; those on a CPU share one pool of threads, made when the first needs it."""

    def __init__(self, options: LoadOptions) -> None:
        self._options = options
        self._pool: Pool | None = None
        self._lock = threading.Lock()
        self._beside = ThreadPoolExecutor(1, "digest")  # reads a file once more while its weights are packed

    def open(self, path: Path) -> OpenedModel:
        """A model's header, tokenizer and template, and what it will need; its weights stay in the file. Raises
        ModelFileError, in one line."""
        model = load_model(path)
        spec, size = model.config.decoder, self._options.config.page_size
        try:
            implementation, reason = choose(spec, size, self._options.kernels)
        except NativeUnavailable as error:
            raise ModelFileError(f"{path.name}: {error}") from error
        if reason:
            log.warning("%s: answers will be slow, computed by torch: %s", path.name, reason)
        try:
            model.template.check()
        except ModelFileError as error:
            log.warning("%s: %s; only /v1/completions will work", path.name, error.message)
        if implementation == "cuda":
            return self._on_gpu(model)
        page = native_page_bytes(spec, size) if implementation == "native" else torch_page_bytes(spec, size)
        return OpenedModel(model, implementation, self._sized(page), page)

    def start(self, opened: OpenedModel) -> Engine:
        """An engine with the model's weights, running. Blocks while they are read. Raises ModelFileError, in one line."""
        config, name = opened.config, opened.model.path.name
        starts = {"cuda": self._cuda, "native": self._native, "torch": self._torch}
        try:
            runner, store = starts[opened.implementation](opened)
        except NativeUnavailable as error:
            raise ModelFileError(f"{name}: {error}") from error
        tokens = config.n_pages * config.page_size
        log.info("%s: %s, %s, KV cache of %d tokens", name, opened.model.config.family, runner.describe(), tokens)
        identity = identity_of(opened.model, runner.layout)
        engine = Engine(runner, opened.model.tokenizer, config, store=store, release=runner.close, identity=identity)
        engine.start()
        return engine

    def close(self) -> None:
        """Stop the threads. The engines must be closed."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        self._beside.shutdown(wait=False, cancel_futures=True)

    def _native(self, opened: OpenedModel) -> tuple[NativeRunner, KvStore | None]:
        options, config, model = self._options, opened.config, opened.model
        with self._lock:
            self._pool = self._pool or Pool(n_threads(options.threads))
        digest = self._beside.submit(lambda: model.digest)  # for receipts, and for the store
        isa = "" if options.isa == "auto" else options.isa
        runner = NativeRunner(model, config.n_pages, config.page_size, self._pool, isa)
        return runner, self._store(runner, digest) if options.kv_disk else None

    def _on_gpu(self, model: LoadedModel) -> OpenedModel:
        """The pool takes what the GPU has free beside the weights; `kv_memory_mb` is the host's."""
        from .engine.cuda_runner import pages_that_fit

        spec, config = model.config.decoder, self._options.config
        n_pages = pages_that_fit(spec, config)
        if not n_pages:
            raise ModelFileError(f"{model.path.name}: its weights do not fit into the GPU's free memory")
        # guesses would leave the captured steps, which are worth more than they
        opened = replace(config, n_pages=n_pages, draws_on_device=True, max_guess=0)
        return OpenedModel(model, "cuda", opened, torch_page_bytes(spec, config.page_size, "bfloat16"))

    def _cuda(self, opened: OpenedModel) -> tuple[DescribedRunner, None]:
        import torch

        from .engine.cuda_runner import CudaRunner

        try:
            return CudaRunner(opened.model.config.decoder, opened.model.weights, opened.config), None
        except torch.cuda.OutOfMemoryError as error:
            raise ModelFileError(f"{opened.model.path.name} does not fit into the GPU's memory") from error

    def _torch(self, opened: OpenedModel) -> tuple[DescribedRunner, None]:
        import torch  # takes seconds and hundreds of MB

        from .engine.torch_runner import TorchRunner

        torch.set_num_threads(n_threads(self._options.threads))
        if self._options.kv_disk:
            log.info("%s: torch keeps its KV pages to itself; none are kept on disk", opened.model.path.name)
        return TorchRunner(opened.model, opened.config.n_pages, opened.config.page_size), None

    def _store(self, runner: NativeRunner, digest: Future[str]) -> KvStore | None:
        def identity() -> bytes:
            return hashlib.blake2b(f"{digest.result()} {runner.layout}".encode(), digest_size=32).digest()

        assert self._options.kv_disk is not None
        store = KvStore(self._options.kv_disk, self._options.kv_disk_mb << 20, runner.pages, identity)
        store.start()
        return store

    def _sized(self, page_bytes: int) -> EngineConfig:
        n_pages = max(1, (self._options.kv_memory_mb << 20) // page_bytes)
        return replace(self._options.config, n_pages=n_pages, restored_pages=max(1, RESTORED_BYTES // page_bytes))
