"""A tiny GGUF file, written by hand, that tests can break byte by byte."""

import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

U8, I32, U32, F32, BOOL, STR, ARR = 0, 5, 4, 6, 7, 8, 9
TOKENS = ["<unk>", "<s>", "</s>", *map(chr, range(ord("a"), ord("z") + 1)), "ab", "Ġ", "Ċ", "!", "?"]
Tensor = tuple[str, tuple[int, ...], int, bytes]  # name, shape (numpy order), type, data


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def value(found: Any) -> bytes:
    """A metadata value with its type before it."""
    if isinstance(found, bool):
        return struct.pack("<I?", BOOL, found)
    if isinstance(found, int):
        return struct.pack("<II", U32, found)
    if isinstance(found, float):
        return struct.pack("<If", F32, found)
    if isinstance(found, str):
        return struct.pack("<I", STR) + text(found)
    if isinstance(found, list) and found and isinstance(found[0], str):
        return struct.pack("<IIQ", ARR, STR, len(found)) + b"".join(map(text, found))
    if isinstance(found, list):
        return struct.pack("<IIQ", ARR, I32, len(found)) + struct.pack(f"<{len(found)}i", *found)
    return found  # bytes: as they are


def metadata(**changes: Any) -> dict[str, Any]:
    """A Llama of one layer; a change of None drops the key ("__" stands for ".")."""
    found = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "llama.block_count": 1,
        "llama.context_length": 64,
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 64,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(TOKENS) - 3),
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    found |= {key.replace("__", "."): new for key, new in changes.items()}
    return {key: new for key, new in found.items() if new is not None}


def tensors(seed: int = 0) -> list[Tensor]:
    """That Llama's weights in F32."""
    rng = np.random.default_rng(seed)
    shapes = {
        "token_embd.weight": (len(TOKENS), 32),
        "output_norm.weight": (32,),
        "blk.0.attn_norm.weight": (32,),
        "blk.0.attn_q.weight": (32, 32),
        "blk.0.attn_k.weight": (16, 32),
        "blk.0.attn_v.weight": (16, 32),
        "blk.0.attn_output.weight": (32, 32),
        "blk.0.ffn_norm.weight": (32,),
        "blk.0.ffn_gate.weight": (64, 32),
        "blk.0.ffn_up.weight": (64, 32),
        "blk.0.ffn_down.weight": (32, 64),
    }
    return [(n, s, 0, rng.standard_normal(s).astype(np.float32).tobytes()) for n, s in shapes.items()]


def gguf(
    pairs: Mapping[str, Any] | Sequence[tuple[Any, Any]] | None = None,
    parts: Sequence[Tensor] | None = None,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_tensors: int | None = None,
    n_pairs: int | None = None,
    offsets: Mapping[str, int] | None = None,
) -> bytes:
    """A file's bytes; every count and offset can be made to lie."""
    given = metadata() if pairs is None else pairs
    found = list(given.items() if isinstance(given, Mapping) else given)
    whole = list(tensors() if parts is None else parts)
    infos, data = b"", b""
    for name, shape, kind, raw in whole:
        at = (offsets or {}).get(name, len(data))
        infos += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, at)
        data += raw + b"\0" * (-len(raw) % 32)
    counts = (len(whole) if n_tensors is None else n_tensors, len(found) if n_pairs is None else n_pairs)
    head = magic + struct.pack("<IQQ", version, *counts)
    head += b"".join(text(key) + value(new) for key, new in found) + infos
    return head + b"\0" * (-len(head) % 32) + data


class Kit:
    """The writer's parts, for tests."""

    gguf = staticmethod(gguf)
    metadata = staticmethod(metadata)
    tensors = staticmethod(tensors)


@pytest.fixture(scope="session")
def kit() -> type[Kit]:
    """Writes GGUF files."""
    return Kit


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    """Puts bytes into a file."""

    def put(data: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(data)
        return path

    return put
