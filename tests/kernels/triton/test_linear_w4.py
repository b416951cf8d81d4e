"""Four-bit products against the unpacked weight, for formats as files have them."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.kernels.triton import linear_w4
from baseload.kernels.triton.linear_w4 import Packed4
from baseload.runtime.models.groups import grouped
from baseload.runtime.models.quants import Q4_0, Q4_1, dequantize


def random_weight(kit, n_out: int, n_in: int, group: int, seed: int) -> tuple[Packed4, torch.Tensor]:
    """A weight, and what it means in float32."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 16, (n_out, n_in), dtype=np.uint8)
    pairs = values.reshape(n_out, -1, 2, 16)
    scales, shifts = (rng.standard_normal((n_out, n_in // group)).astype(np.float16) for _ in range(2))
    exact = values * np.repeat(scales, group, 1).astype(np.float32) + np.repeat(shifts, group, 1)
    packed = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(n_out, -1)
    parts = (torch.from_numpy(part).to(kit.device) for part in (packed, scales, shifts))
    return Packed4(*parts), torch.from_numpy(exact).to(kit.device)


@settings(max_examples=15, deadline=None)
@given(
    rows=st.sampled_from([0, 1, 2, 17, 64, 65]),
    shape=st.sampled_from([(1, 32, 32), (40, 64, 32), (130, 288, 32), (33, 256, 128)]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 9),
)
def test_the_product_is_that_of_the_unpacked_weight(kit, rows, shape, dtype, seed):
    n_out, n_in, group = shape
    weight, exact = random_weight(kit, n_out, n_in, group, seed)
    assert weight.shape == (n_out, n_in) and weight.group == group
    x = kit.randn(rows, n_in, seed=seed, dtype=dtype)
    expected = x.double() @ exact.double().T
    found = linear_w4.linear(x, weight)
    # each weight is rounded once to dtype: an error of eps * sqrt(in) of a typical term, times a margin
    bound = 8 * torch.finfo(dtype).eps * n_in**0.5 * float(exact.abs().max())
    torch.testing.assert_close(found.double(), expected, atol=max(bound, 1e-4), rtol=2 * torch.finfo(dtype).eps)


def test_gguf_blocks_unpack_to_what_the_file_means(kit):
    rng = np.random.default_rng(3)
    for kind, nbytes in ((Q4_0, 18), (Q4_1, 20)):
        raw = rng.integers(0, 256, (6, 2, nbytes), dtype=np.uint8)
        raw[..., : nbytes - 16].view(np.float16)[:] = rng.standard_normal((6, 2, (nbytes - 16) // 2)).astype(np.float16)
        weight = Packed4.of(grouped(raw.ravel(), kind, (6, 64)), kit.device)
        exact = torch.from_numpy(dequantize(raw.ravel(), kind, (6, 64))).to(kit.device)
        kit.near(linear_w4.unpack(weight, torch.float32), exact, torch.float32)
        assert weight.nbytes < exact.numel() * 2 * 0.4
