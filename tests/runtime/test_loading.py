"""A model file to an engine: which kernels run it, what is said of that, and what ends in one line."""

import asyncio
import importlib.util
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from baseload.kernels import dispatch
from baseload.kernels.cpu.library import NativeUnavailable, instruction_sets, library
from baseload.kernels.spec import DecoderSpec, LayerSpec
from baseload.runtime.engine import Engine, EngineConfig
from baseload.runtime.engine.native_runner import NativeRunner
from baseload.runtime.engine.request import GenerationRequest
from baseload.runtime.engine.torch_runner import TorchRunner
from baseload.runtime.loading import Loader, LoadOptions
from baseload.wire.chat import SamplingParams
from baseload.wire.errors import ModelFileError

from .models.conftest import gguf, metadata, tensors

Load = Callable[..., Engine]
SLOW = "answers will be slow"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A Llama of one layer with heads of 32 dimensions, which the native step runs."""
    parts = [(n, (32, 32) if "attn_k." in n or "attn_v." in n else s, kind, raw) for n, s, kind, raw in tensors()]
    parts = [(n, s, kind, raw * 2 if "attn_k." in n or "attn_v." in n else raw) for n, s, kind, raw in parts]
    path = tmp_path / "whole.gguf"
    path.write_bytes(gguf(metadata(llama__attention__head_count=1), parts))
    return path


@pytest.fixture
def narrow(tmp_path: Path) -> Path:
    """One with heads of 16 dimensions, which it does not."""
    path = tmp_path / "narrow.gguf"
    path.write_bytes(gguf())
    return path


@pytest.fixture
def load() -> Iterator[Load]:
    """`load(path, kernels="native")`: an engine that is not started."""
    loaders: list[Loader] = []
    engines: list[Engine] = []

    def begin(path: Path, **options: Any) -> Engine:
        config = EngineConfig(page_size=options.pop("page_size", 16))
        loaders.append(Loader(LoadOptions(config, kv_memory_mb=1, **options)))
        engines.append(loaders[-1].start(loaders[-1].open(path)))
        return engines[-1]

    yield begin
    for engine in engines:
        engine.close()
    for loader in loaders:
        loader.close()


def runs_on(engine: Engine) -> type:
    return type(engine._runner)


async def answer(engine: Engine) -> list[int]:
    """Four greedy tokens."""
    sampling = SamplingParams(temperature=0.0, max_tokens=4)
    stream = engine.submit(GenerationRequest("x", [5, 6, 7], sampling))
    return [token async for output in stream for token in output.token_ids]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING and SLOW in record.message]


async def test_the_native_step_is_taken_and_said(model, load, caplog):
    with caplog.at_level(logging.INFO, "baseload.runtime"):
        engine = load(model)
    assert runs_on(engine) is NativeRunner and not warnings(caplog)
    assert any("native step (" in record.message and "threads" in record.message for record in caplog.records)


@pytest.mark.parametrize("isa", instruction_sets())
async def test_the_settings_may_name_the_instructions(isa, model, load, caplog):
    with caplog.at_level(logging.INFO, "baseload.runtime"):
        engine = load(model, isa=isa)
    assert len(await answer(engine)) == 4
    assert any(f"native step ({isa}, " in record.message for record in caplog.records)


async def test_instructions_that_the_machine_has_not(model, load):
    with pytest.raises(ModelFileError, match="does not run the instruction set 'abacus'"):
        load(model, isa="abacus")


async def test_torch_where_the_settings_ask_for_it(model, load, caplog):
    engine = load(model, kernels="torch")
    assert runs_on(engine) is TorchRunner
    assert len(warnings(caplog)) == 1 and "settings" in warnings(caplog)[0]


async def test_torch_where_the_native_step_cannot(narrow, load, caplog):
    engine = load(narrow)
    assert runs_on(engine) is TorchRunner
    assert len(warnings(caplog)) == 1 and "head_dim 16" in warnings(caplog)[0]


async def test_torch_where_the_pages_do_not_fit(model, load, caplog):
    engine = load(model, page_size=24)
    assert runs_on(engine) is TorchRunner and "page size 24" in warnings(caplog)[0]


def no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(dispatch, "library", lambda: library(tmp_path / "empty"))


def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else real(name, *rest))


async def test_torch_with_one_warning_where_the_library_is_missing(model, load, caplog, monkeypatch, tmp_path):
    no_library(monkeypatch, tmp_path)
    engine = load(model)
    assert runs_on(engine) is TorchRunner
    assert len(warnings(caplog)) == 1 and "python -m baseload.kernels.cpu.compile" in warnings(caplog)[0]


async def test_one_line_where_neither_is_there(model, load, monkeypatch, tmp_path):
    no_library(monkeypatch, tmp_path)
    no_torch(monkeypatch)
    with pytest.raises(ModelFileError) as caught:
        load(model)
    said = caught.value.message
    assert "\n" not in said and said.startswith("whole.gguf: ") and "python -m baseload.kernels.cpu.compile" in said


@pytest.mark.parametrize("torch_is_there", [True, False])
async def test_native_means_native(narrow, load, monkeypatch, torch_is_there):
    if not torch_is_there:
        no_torch(monkeypatch)
    with pytest.raises(ModelFileError, match=r"narrow\.gguf: .*head_dim 16 is not a multiple of 32"):
        load(narrow, kernels="native")


async def test_native_means_native_without_the_library_too(model, load, monkeypatch, tmp_path):
    no_library(monkeypatch, tmp_path)
    with pytest.raises(ModelFileError, match="not compiled"):
        load(model, kernels="native")


async def test_both_answer_alike(model, load):
    """Weights of float32 become bfloat16 on the native step; the answer of this model does not hang on that."""
    native, slow = [await answer(load(model, kernels=kernels)) for kernels in ("native", "torch")]
    assert native == slow and native


async def test_models_share_one_pool_and_answer_at_once(model, tmp_path):
    loader = Loader(LoadOptions(EngineConfig(page_size=16), kv_memory_mb=1, threads=2))
    engines = [loader.start(loader.open(model)) for _ in range(3)]
    try:
        answers = await asyncio.gather(*(answer(engine) for engine in engines))
        assert answers[0] == answers[1] == answers[2]
    finally:
        for engine in engines:
            engine.close()
        loader.close()
        loader.close()  # once more does nothing


def test_choosing_imports_no_tensor_library():
    code = (
        "import sys; from baseload.runtime.loading import Loader; from baseload.kernels import dispatch;"
        "print(sorted({'torch', 'transformers', 'jinja2', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_choose_says_which():
    spec = DecoderSpec(1, 64, 2, 1, 32, 64, 40, 64, 1e-5, (LayerSpec(),))
    assert dispatch.choose(spec, 16) == ("native", "")
    assert dispatch.choose(spec, 16, "torch")[0] == "torch"
    assert dispatch.choose(spec, 8)[0] == "torch"
    with pytest.raises(NativeUnavailable):
        dispatch.choose(spec, 8, "native")


@pytest.mark.skipif(not dispatch.no_gpu(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_to_be_missing():
    spec = DecoderSpec(1, 64, 2, 1, 32, 64, 40, 64, 1e-5, (LayerSpec(),))
    assert dispatch.choose(spec, 16)[0] == "native", "auto goes on to what is there"
    with pytest.raises(NativeUnavailable, match=r"NVIDIA|GPU"):
        dispatch.choose(spec, 16, "cuda")
