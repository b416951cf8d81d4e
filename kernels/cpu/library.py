"""The compiled library as Python sees it: ctypes declarations of step.h, and one check that it fits its sources.

ctypes lets go of the interpreter during a call, so the event loop runs on while a step does.
"""

import ctypes
import functools
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from pathlib import Path

from .compile import HERE, LIBRARY, REBUILD, sources_hash


class NativeUnavailable(Exception):
    """The native library cannot be used; the message says why, and what to do."""


class Weight(ctypes.Structure):
    """ops.h's Weight."""

    _fields_ = (
        ("codes", c_void_p),
        ("scales", c_void_p),
        ("format", c_int32),
        ("rows", c_int32),
        ("cols", c_int32),
        ("padding", c_int32),
    )


LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
VECTORS = (
    "attn_norm",
    "mlp_norm",
    "post_attn_norm",
    "post_mlp_norm",
    "q_bias",
    "k_bias",
    "v_bias",
    "q_norm",
    "k_norm",
    "cos",
    "sin",
)


class Layer(ctypes.Structure):
    """step.h's LayerDesc."""

    _fields_ = (
        *((name, Weight) for name in LINEARS),
        *((name, c_void_p) for name in VECTORS),
        *((name, c_int32) for name in ("window", "fine", "bytes", "padding")),
    )


class Model(ctypes.Structure):
    """step.h's ModelDesc."""

    _fields_ = (
        *(
            (n, c_int32)
            for n in ("n_layers", "hidden", "n_heads", "n_kv_heads", "head_dim", "intermediate", "vocab", "activation")
        ),
        *((n, c_float) for n in ("norm_eps", "embed_scale", "attn_scale", "attn_softcap", "final_softcap")),
        *((n, c_int32) for n in ("page_size", "padding", "more_padding")),
        ("layers", POINTER(Layer)),
        ("embed", Weight),
        ("head", Weight),
        ("norm", c_void_p),
        ("pool", c_void_p),
    )


class Batch(ctypes.Structure):
    """step.h's BatchDesc."""

    _fields_ = (
        *((n, c_int32) for n in ("n_tokens", "n_rows", "n_logits", "pages_wide")),
        *((n, c_void_p) for n in ("tokens", "positions", "row_starts", "page_tables", "logit_rows", "slots")),
        *((n, c_void_p) for n in ("full_logits", "best", "finite", "logits", "states")),
    )


SIGNATURES = {
    "bl_isa": (c_char_p, [c_int]),
    "bl_pool_create": (c_void_p, [c_int]),
    "bl_pool_free": (None, [c_void_p]),
    "bl_pool_threads": (c_int, [c_void_p]),
    "bl_model_create": (c_void_p, [POINTER(Model), c_void_p, c_char_p]),
    "bl_model_free": (None, [c_void_p]),
    "bl_step": (c_int, [c_void_p, POINTER(Batch)]),
    "bl_times": (None, [c_void_p, c_void_p]),
    "bl_linear": (c_int, [c_void_p, c_char_p, c_void_p, c_int, c_void_p, c_int, c_int, c_void_p]),
    "bl_read_bytes": (c_int64, [c_void_p, c_void_p, c_int64]),
    "bl_products": (c_int64, [c_void_p, c_char_p, c_int64]),
}


@functools.cache
def library(folder: Path = HERE) -> ctypes.CDLL:
    """The library of this checkout or install. Raises NativeUnavailable if it is absent, does not load, or is older than the
    C++ beside it."""
    path = folder / LIBRARY
    if not path.is_file():
        raise NativeUnavailable(f"the native CPU library is not compiled; `{REBUILD}` does it")
    try:
        found = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailable(f"the native CPU library does not load ({error}); `{REBUILD}` makes it anew") from error
    found.bl_sources_hash.restype = c_char_p
    if found.bl_sources_hash().decode() != sources_hash(folder):
        raise NativeUnavailable(f"the native CPU library is older than its sources; `{REBUILD}` makes it anew")
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


def instruction_sets() -> tuple[str, ...]:
    """The variants that this machine can run, best first."""
    names, lib = [], library()
    while name := lib.bl_isa(len(names)):
        names.append(name.decode())
    return tuple(names)


class Pool:
    """The threads that walk a step; models share one. `n_threads` counts the caller."""

    def __init__(self, n_threads: int) -> None:
        self._library = library()
        self.handle = self._library.bl_pool_create(n_threads)
        if not self.handle:
            raise MemoryError("no memory for the threads of the native library")
        self.n_threads: int = self._library.bl_pool_threads(self.handle)
        self.n_models = 0  # that may run on it

    def close(self) -> None:
        """Stop the threads. While a model that was not closed, as one whose step is stuck, may yet run on them, they stay."""
        if self.handle and not self.n_models:
            self._library.bl_pool_free(self.handle)
            self.handle = None
