"""The operations on torch: device and dtype to implementation. What was chosen can be printed."""

import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType

import torch

from . import reference

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Kernels:
    """An implementation (a module with the operations of kernels/reference.py) and what it was chosen for."""

    ops: ModuleType
    device: torch.device
    dtype: torch.dtype

    def describe(self) -> str:
        """One line for the start-up log."""
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        name = "triton" if self.ops.__name__.endswith("triton.ops") else self.ops.__name__.rsplit(".", 1)[-1]
        return f"kernels: {name} (torch {torch.__version__}), {self.device}, {self.dtype}{threads}"


def choose(device: str, dtype: str, triton: bool = False) -> Kernels:
    """The implementation for a device ("cpu", "cuda", "cuda:1") and a dtype ("float32", "bfloat16", "float16"): with `triton`
    the GPU's kernels, which a CPU runs in Triton's interpreter only.

    Raises ValueError, in one line, for a dtype we do not know and a device that this machine does not have.
    """
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}: one of {', '.join(DTYPES)}")
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} is not available: {str(error).splitlines()[0]}") from error
    if not triton:
        return Kernels(reference, found, DTYPES[dtype])
    if importlib.util.find_spec("triton") is None:
        raise ValueError("the GPU's kernels need Triton, which is not installed: pip install triton")
    # named, not imported above: Triton takes a second, and a machine without a GPU does not have it
    return Kernels(importlib.import_module(".triton.ops", __package__), found, DTYPES[dtype])
