"""What all launches have in common: whether kernels run in Triton's interpreter, and how many warps a block gets."""

import os

import torch

# Triton reads this when it is imported: kernels then run on a CPU, in numpy, one program after the other. For tests.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


def warps(elements: int) -> int:
    """Warps for a program over so many elements: 8 to 16 a thread keep enough loads in flight. Not yet measured."""
    return max(1, min(16, elements // 256))


def upcast(dtype: torch.dtype) -> bool:
    """Whether a kernel must turn the operands of `tl.dot` to float32 first: the interpreter's product of bfloat16 is wrong."""
    return INTERPRETED and dtype == torch.bfloat16


def precision(dtype: torch.dtype) -> str:
    """How `tl.dot` multiplies: float32 exactly (its default, tf32, has 10 bits), half precision as it is."""
    return "ieee" if dtype == torch.float32 or INTERPRETED else "tf32"
