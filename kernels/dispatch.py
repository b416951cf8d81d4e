"""Which implementation runs a model's steps: Triton's kernels on a GPU, the native step on a CPU, torch where neither can.

Imports none of them: torch, which knows of GPUs, takes seconds, and is asked only where a driver is there.
"""

import importlib.util
import os
from pathlib import Path
from typing import Literal

from .cpu.library import NativeUnavailable, library
from .cpu.step import unsupported
from .spec import DecoderSpec

Implementation = Literal["cuda", "native", "torch"]
DRIVERS = Path("/dev/nvidiactl"), Path("/dev/dxg")  # Linux; Windows' Linux


def choose(spec: DecoderSpec, page_size: int, wanted: str = "auto") -> tuple[Implementation, str]:
    """The implementation for a model, and, where it is torch, why. "auto", "cuda", "native" and "torch" may be wanted.

    Raises NativeUnavailable, in one line, where what is wanted cannot run it, or nothing can.
    """
    if wanted == "torch":
        return "torch", "the settings ask for it"
    if wanted in ("auto", "cuda"):
        absent = no_gpu()
        if not absent:
            return "cuda", ""
        if wanted == "cuda":
            raise NativeUnavailable(absent)
    reason = _missing(spec, page_size)
    if not reason:
        return "native", ""
    if wanted == "native" or importlib.util.find_spec("torch") is None:
        raise NativeUnavailable(reason)
    return "torch", reason


def no_gpu() -> str:
    """Why the GPU's kernels can't run here; "" where they can."""
    if not any(path.exists() for path in DRIVERS):
        return "there is no NVIDIA driver on this machine"
    missing = [name for name in ("torch", "triton") if importlib.util.find_spec(name) is None]
    if missing:
        return f"the GPU's kernels need {' and '.join(missing)}: pip install 'baseload[gpu]'"
    import torch

    return "" if torch.cuda.is_available() else "torch finds no GPU"


def _missing(spec: DecoderSpec, page_size: int) -> str:
    try:
        library()
    except NativeUnavailable as error:
        return str(error)
    reason = unsupported(spec, page_size)
    return f"the native step does not run this model: {reason}" if reason else ""


def n_threads(asked: int = 0) -> int:
    """Threads for the native step: `asked`, or one for each core that this process may use."""
    return asked or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
