"""A model file to an engine that is not started yet: the kernels that run it, the pool that fits, the limits."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from ..kernels.cpu.library import NativeUnavailable, Pool
from ..kernels.dispatch import choose, n_threads
from ..wire.errors import ModelFileError
from .engine import Engine, EngineConfig
from .engine.model_runner import DescribedRunner
from .models.model_file import LoadedModel, load_model

log = logging.getLogger("baseload.runtime")


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How models are loaded. `config.n_pages` is replaced by what `kv_memory_mb` holds."""

    config: EngineConfig
    kv_memory_mb: int
    threads: int = 0  # 0: one for each core
    kernels: str = "auto"  # "auto", "native" or "torch"


class Loader:
    """Loads models; those on a CPU share one pool of threads, made when the first needs it."""

    def __init__(self, options: LoadOptions) -> None:
        self._options = options
        self._pool: Pool | None = None

    def load(self, path: Path) -> tuple[LoadedModel, Engine]:
        """A model and its engine. Raises ModelFileError, in one line."""
        model = load_model(path)
        try:
            runner, config = self._runner(model)
        except NativeUnavailable as error:
            raise ModelFileError(f"{path.name}: {error}") from error
        try:
            model.template.check()
        except ModelFileError as error:
            log.warning("%s: %s; only /v1/completions will work", path.name, error.message)
        tokens = config.n_pages * config.page_size
        log.info("%s: %s, %s, KV cache of %d tokens", path.name, model.config.family, runner.describe(), tokens)
        return model, Engine(runner, model.tokenizer, config)

    def close(self) -> None:
        """Stop the threads. The engines must be closed."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _runner(self, model: LoadedModel) -> tuple[DescribedRunner, EngineConfig]:
        options, spec = self._options, model.config.decoder
        size = options.config.page_size
        implementation, reason = choose(spec, size, options.kernels)
        if implementation == "native":
            from .engine.native_runner import NativeRunner, page_bytes

            config = self._sized(page_bytes(spec, size))
            self._pool = self._pool or Pool(n_threads(options.threads))
            return NativeRunner(model, config.n_pages, size, self._pool), config
        log.warning("%s: answers will be slow, computed by torch: %s", model.path.name, reason)
        import torch  # takes seconds and hundreds of MB

        from .engine.model_runner import page_bytes as torch_page_bytes
        from .engine.torch_runner import TorchRunner

        torch.set_num_threads(n_threads(options.threads))
        config = self._sized(torch_page_bytes(spec, size))
        return TorchRunner(model, config.n_pages, size), config

    def _sized(self, page_bytes: int) -> EngineConfig:
        return replace(self._options.config, n_pages=max(1, (self._options.kv_memory_mb << 20) // page_bytes))
