"""A model loaded, with what its KV pages on disk are filed under."""

from pathlib import Path

import pytest

from baseload.kernels.cpu.library import instruction_sets
from baseload.runtime.engine import Engine, EngineConfig, GenerationRequest
from baseload.runtime.loading import Loader, LoadOptions
from baseload.wire.chat import SamplingParams

pytestmark = pytest.mark.slow
PROMPT = tuple(range(1000, 1150))


async def answer(engine: Engine) -> tuple[list[int], int]:
    """The greedy tokens, and how many of the prompt's were known."""
    stream = engine.submit(GenerationRequest("x", PROMPT, SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)))
    outputs = [output async for output in stream]
    return [token for output in outputs for token in output.token_ids], outputs[-1].cached_tokens


async def served(path: Path, root: Path, page_size: int = 32) -> tuple[list[int], int]:
    """The same, from a process that has just begun and ends at once."""
    loader = Loader(LoadOptions(EngineConfig(page_size=page_size), 64, kv_disk=root, kv_disk_mb=64))
    opened = loader.open(path)
    model, engine = opened.model, loader.start(opened)
    assert engine._store is not None and engine._store.flush(30)
    try:
        return await answer(engine)
    finally:
        await engine.drain(0)
        engine.close()
        model.template.close()
        loader.close()


async def test_pages_are_filed_by_all_that_their_bits_depend_on(smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another model in between, another page size, another instruction set: each has its own, and finds it again."""
    root = tmp_path / "kv"
    other = tmp_path / "other.gguf"  # one weight's scale differs
    data = bytearray(smollm2.read_bytes())
    data[-1000] ^= 1
    other.write_bytes(data)

    cold = await served(smollm2, root)
    assert cold[1] == 0 and (await served(smollm2, root)) == (cold[0], 128)
    assert (await served(other, root))[1] == 0
    assert (await served(smollm2, root, page_size=16))[1] == 0
    for isa in instruction_sets()[1:]:
        monkeypatch.setattr("baseload.kernels.cpu.library.instruction_sets", lambda isa=isa: (isa,))
        assert (await served(smollm2, root))[1] == 0
    monkeypatch.undo()
    assert len(list(root.glob("*/pages"))) == 3 + len(instruction_sets()) - 1
    assert (await served(smollm2, root)) == (cold[0], 128)
    assert (await served(other, root))[1] == 128


def test_nothing_is_kept_unless_asked(smollm2: Path):
    loader = Loader(LoadOptions(EngineConfig(), 64))
    opened = loader.open(smollm2)
    model, engine = opened.model, loader.start(opened)
    assert not engine.stats().kv_store.enabled and engine._store is None
    engine.close()
    model.template.close()
    loader.close()


def test_torch_keeps_none(smollm2: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    loader = Loader(LoadOptions(EngineConfig(), 64, kernels="torch", kv_disk=tmp_path))
    opened = loader.open(smollm2)
    model, engine = opened.model, loader.start(opened)
    assert engine._store is None and "none are kept on disk" in caplog.text and not list(tmp_path.iterdir())
    engine.close()
    model.template.close()
    loader.close()
