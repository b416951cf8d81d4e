"""Model files: sound ones are read as their makers read them, broken ones end in one line."""

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baseload.runtime.models import quants
from baseload.runtime.models.config import config_from_hf
from baseload.runtime.models.load_gguf import open_gguf
from baseload.runtime.models.load_safetensors import SafetensorsWeights
from baseload.runtime.models.model_file import check_model, load_model
from baseload.wire.errors import ModelFileError

Write = Callable[[bytes], Path]


def test_the_tiny_file_is_sound(kit: Any, write: Write):
    path = write(kit.gguf())
    assert "sound" in check_model(path)
    model = load_model(path)
    assert model.config.decoder.n_kv_heads == 1 and model.tokenizer.encode("ab", specials=False) == [29]
    assert np.array_equal(model.weights.tensor("layers.0.v"), np.frombuffer(kit.tensors()[5][3], np.float32).reshape(16, 32))


def test_q_and_k_come_back_from_interleaved_rope_order(kit: Any, write: Write):
    """The converter interleaves the halves of each head's rows; we undo it."""
    theirs = np.frombuffer(kit.tensors()[3][3], np.float32).reshape(32, 32)
    ours = load_model(write(kit.gguf())).weights.tensor("layers.0.q")
    again = ours.reshape(2, 2, 8, 32).swapaxes(1, 2).reshape(32, 32)  # what llama.cpp's converter does
    assert np.array_equal(again, theirs) and not np.array_equal(ours, theirs)


def test_metadata_keeps_its_types(kit: Any, write: Write):
    pairs = kit.metadata(x__b=True, x__f=0.5, x__l=[1, -2], x__s=["a", "ü"])
    found = open_gguf(write(kit.gguf(pairs))).metadata
    assert [found[k] for k in ("x.b", "x.f", "x.l", "x.s")] == [True, 0.5, [1, -2], ["a", "ü"]]


HUGE = struct.pack("<IIQ", 9, 0, 1 << 60)
BROKEN: dict[str, Callable[[Any], bytes]] = {
    "empty": lambda kit: b"",
    "magic": lambda kit: kit.gguf(magic=b"GGUE"),
    "big-endian": lambda kit: b"GGUF" + struct.pack(">I", 3) + kit.gguf()[8:],
    "version": lambda kit: kit.gguf(version=1),
    "tensor count": lambda kit: kit.gguf(n_tensors=1 << 63),
    "metadata count": lambda kit: kit.gguf(n_pairs=1 << 32),
    "length of a key": lambda kit: b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62) + b"x" * 64,
    "exceeds what the file holds": lambda kit: kit.gguf([("x", HUGE)]),
    "array of arrays": lambda kit: kit.gguf([("x", struct.pack("<IIQ", 9, 9, 1) * 9)]),
    "unknown type": lambda kit: kit.gguf([("x", struct.pack("<I", 255) + b"\0" * 8)]),
    "stands twice": lambda kit: kit.gguf([*kit.metadata().items(), ("general.name", "again")]),
    "tensor 'token_embd.weight' stands twice|stands twice": lambda kit: kit.gguf(parts=kit.tensors() + kit.tensors()[:1]),
    "overlap": lambda kit: kit.gguf(offsets={"blk.0.attn_v.weight": 0}),
    "past the end": lambda kit: kit.gguf(offsets={"blk.0.ffn_down.weight": 1 << 40}),
    "off the alignment": lambda kit: kit.gguf(offsets={"blk.0.ffn_down.weight": 3}),
    "power of two": lambda kit: kit.gguf(kit.metadata(general__alignment=3)),
    "dimensions": lambda kit: kit.gguf(parts=[("a", (1, 1, 1, 1, 1), 0, b"\0" * 4)]),
    "impossible shape": lambda kit: kit.gguf(parts=[("a", (1 << 32, 1 << 32), 0, b"\0" * 4)]),
    "shape .*0": lambda kit: kit.gguf(parts=[("a", (0,), 0, b"")]),
    "unsupported type": lambda kit: kit.gguf(parts=[("a", (1,), 99, b"\0" * 4)]),
    "token_embd.weight": lambda kit: kit.gguf(parts=kit.tensors()[1:]),
    "'layers.0.down' is missing": lambda kit: kit.gguf(parts=kit.tensors()[:-1]),
    "'norm' has the shape": lambda kit: kit.gguf(
        parts=[("output_norm.weight", (64,), 0, b"\0" * 256), *(t for t in kit.tensors() if t[0] != "output_norm.weight")]
    ),
    "architecture is missing": lambda kit: kit.gguf(kit.metadata(general__architecture=None)),
    "not supported": lambda kit: kit.gguf(kit.metadata(general__architecture="../../os.system")),
    "block_count is missing": lambda kit: kit.gguf(kit.metadata(llama__block_count=None)),
    "block_count is not a": lambda kit: kit.gguf(kit.metadata(llama__block_count="1")),
    "which no model has": lambda kit: kit.gguf(kit.metadata(llama__block_count=(1 << 31) - 1)),
    "head_count is 0": lambda kit: kit.gguf(kit.metadata(llama__attention__head_count=0)),
    "cannot share": lambda kit: kit.gguf(kit.metadata(llama__attention__head_count=3, llama__attention__head_count_kv=2)),
    "epsilon is nan": lambda kit: kit.gguf(kit.metadata(llama__attention__layer_norm_rms_epsilon=float("nan"))),
    "rope": lambda kit: kit.gguf(kit.metadata(llama__rope__freq_base=float("inf"))),
    "eos_token_id": lambda kit: kit.gguf(kit.metadata(tokenizer__ggml__eos_token_id=0xFFFFFFF0)),
    "tokenizer kind": lambda kit: kit.gguf(kit.metadata(tokenizer__ggml__model="wordpiece")),
}


@pytest.mark.parametrize("says", BROKEN)
def test_a_broken_file_is_refused_in_one_line(says: str, kit: Any, write: Write):
    with pytest.raises(ModelFileError, match=says if says not in ("empty", "magic", "version") else ".") as refused:
        check_model(write(BROKEN[says](kit)))
    assert "\n" not in refused.value.message and len(refused.value.message) < 300


def test_every_truncation_is_refused(kit: Any, write: Write):
    whole = kit.gguf()
    for size in [*range(0, 200, 7), *range(200, len(whole), 997), len(whole) - 129]:
        with pytest.raises(ModelFileError):
            check_model(write(whole[:size]))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2500), st.integers(0, 255)), min_size=1, max_size=4))
def test_random_damage_loads_or_is_refused(kit: Any, write: Write, damage: list[tuple[int, int]]):
    data = bytearray(kit.gguf())
    for at, byte in damage:
        data[at] = byte
    said = ""
    try:
        load_model(write(bytes(data)))
    except ModelFileError as error:
        said = error.message
    assert len(said) < 500 and "\n" not in said


@pytest.mark.parametrize("ggml_type", sorted(set(quants.BLOCKS)))
def test_dequantised_as_gguf_py_does_it(ggml_type: int):
    import gguf

    size, nbytes = quants.BLOCKS[ggml_type]
    n = 70 * 256 // size
    raw = np.random.default_rng(ggml_type).integers(0, 256, n * nbytes, dtype=np.uint8)
    with np.errstate(all="ignore"):
        ours = quants.dequantize(raw, ggml_type, (n, size))
        if ggml_type in (quants.F32, quants.F16, quants.BF16):  # gguf-py takes these as arrays of their own type
            kind = {quants.F32: "F32", quants.F16: "F16", quants.BF16: "BF16"}[ggml_type]
            typed = raw.view({"F32": np.float32, "F16": np.float16, "BF16": np.uint8}[kind])
            theirs = gguf.quants.dequantize(typed.reshape(n, -1), gguf.GGMLQuantizationType(ggml_type)).astype(np.float32)
        else:
            theirs = gguf.quants.dequantize(raw.reshape(n, nbytes), gguf.GGMLQuantizationType(ggml_type))
    assert np.array_equal(ours, theirs.reshape(n, size), equal_nan=True)


def test_the_real_file_is_checked_without_a_tensor_library(smollm2: Path):
    code = (
        "import sys; from pathlib import Path; from baseload.runtime.models.model_file import check_model;"
        "print(check_model(Path(sys.argv[1])));"
        "sys.exit(bool({'torch', 'transformers', 'jinja2', 'gguf'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(smollm2)], capture_output=True, text=True)
    assert done.returncode == 0 and "sound" in done.stdout, done.stderr


def test_the_digest_is_of_the_content(kit: Any, write: Write):
    import hashlib

    data = kit.gguf()
    assert load_model(write(data)).digest == hashlib.sha256(data).hexdigest()


# ------------------------------------------------------------------------------------------------- Hugging Face folders

HF = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 31,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}


def hf(folder: Path, **changes: Any) -> Any:
    (folder / "config.json").write_text(json.dumps({k: v for k, v in (HF | changes).items() if v is not None}))
    return config_from_hf(folder).decoder


def test_a_plain_llama(tmp_path: Path):
    spec = hf(tmp_path, rope_theta=5e5, num_key_value_heads=1)
    assert (spec.n_kv_heads, spec.head_dim, spec.layers[1].rope_theta, spec.tied) == (1, 16, 5e5, False)


def test_llama3_scaling_is_transformers(tmp_path: Path):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    }
    spec = hf(tmp_path, rope_parameters=scaling, hidden_size=128)
    config = LlamaConfig(hidden_size=128, num_attention_heads=2, rope_parameters=scaling, max_position_embeddings=8192)
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** -(np.arange(0, 64, 2) / 64)
    assert np.allclose(plain / np.array(spec.rope_long_freqs), theirs.numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"model_type": "mistral", "sliding_window": 8}, [8, 8]),
        ({"model_type": "mistral", "sliding_window": None}, [0, 0]),
        ({"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": False}, [0, 0]),
        ({"model_type": "qwen3", "sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]}, [0, 8]),
        ({"model_type": "gemma3_text", "sliding_window": 8, "sliding_window_pattern": 2}, [8, 0]),
    ],
)
def test_who_slides(tmp_path: Path, changes: dict[str, Any], windows: list[int]):
    assert [layer.window for layer in hf(tmp_path, **changes).layers] == windows


def test_what_the_families_have(tmp_path: Path):
    assert hf(tmp_path, model_type="qwen2").qkv_bias
    assert hf(tmp_path, model_type="qwen3").qk_norm
    gemma = hf(tmp_path, model_type="gemma3_text", sliding_window=8, query_pre_attn_scalar=64, rope_local_base_freq=10000.0)
    assert gemma.qk_norm and gemma.post_norms and gemma.tied and gemma.activation == "gelu_tanh"
    assert (gemma.attn_scale, gemma.embed_scale) == (64**-0.5, 32**0.5)
    assert (gemma.layers[0].rope_theta, gemma.layers[0].window) == (10000.0, 8)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "mamba"}, "not supported"),
        ({"model_type": None}, "model_type"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_hidden_layers": 10**6}, "n_layers"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": ["sliding_attention"] * 2}, "sliding_window"),
        ({"rms_norm_eps": 5}, "epsilon"),
    ],
)
def test_a_broken_config_names_the_field(tmp_path: Path, changes: dict[str, Any], says: str):
    with pytest.raises(ModelFileError, match=says):
        hf(tmp_path, **changes)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_safetensors_of_each_type_whole_and_in_shards(tmp_path: Path, dtype: str):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {k: HF[k] for k in HF if k != "model_type"}
    model = LlamaForCausalLM(LlamaConfig(**sizes)).to(getattr(torch, dtype))
    state = model.state_dict()
    for shards in ("1GB", "20KB"):
        folder = tmp_path / shards
        model.save_pretrained(folder, max_shard_size=shards)
        spec = config_from_hf(folder).decoder
        weights = SafetensorsWeights(folder, spec, norm_plus_one=False)
        theirs = state["model.layers.1.mlp.down_proj.weight"].float().numpy()
        assert np.array_equal(weights.tensor("layers.1.down"), theirs)
        assert np.array_equal(weights.tensor("head"), state["lm_head.weight"].float().numpy())


def test_an_index_may_not_name_a_file_elsewhere(tmp_path: Path):
    spec = hf(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(ModelFileError, match="outside"):
        SafetensorsWeights(tmp_path, spec, norm_plus_one=False)


def test_a_broken_safetensors_file_is_refused(tmp_path: Path):
    spec = hf(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ModelFileError, match=r"model\.safetensors"):
        SafetensorsWeights(tmp_path, spec, norm_plus_one=False)
