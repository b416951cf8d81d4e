"""The GPU's kernels: on a GPU where there is one, else in Triton's interpreter (tests/conftest.py sees to that)."""

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton", reason="the GPU's kernels need Triton (pip install triton)")


class Kit:
    """Random tensors on the device under test, and how far two results may part."""

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtypes = (torch.float32, torch.float16, torch.bfloat16)

    @classmethod
    def randn(cls, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Normal numbers of this seed."""
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(cls.device, dtype)

    @staticmethod
    def near(ours: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype, roundings: float = 4) -> None:
        """Equal up to so many roundings to `dtype` of the largest value."""
        bound = roundings * torch.finfo(dtype).eps * max(1.0, float(exact.abs().max()) if exact.numel() else 0.0)
        torch.testing.assert_close(ours.double(), exact.double(), atol=bound, rtol=0)


@pytest.fixture(scope="session")
def kit() -> type[Kit]:
    """Makes tensors and compares them."""
    return Kit


@pytest.fixture(scope="session")
def randn() -> Callable[..., torch.Tensor]:
    """Kit.randn."""
    return Kit.randn
