"""Eight-bit products: the integers' product is exact, so the error is that of rounding x and the weight."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.kernels.triton.linear_w8 import Packed8, linear


@settings(max_examples=10, deadline=None)
@given(rows=st.sampled_from([0, 1, 5, 40]), shape=st.sampled_from([(8, 16), (40, 64), (72, 256)]), seed=st.integers(0, 9))
def test_the_error_is_that_of_rounding(kit, rows, shape, seed):
    n_out, n_in = shape
    w, x = kit.randn(n_out, n_in, seed=seed), kit.randn(rows, n_in, seed=seed + 1)
    packed = Packed8.of(w)
    assert float((packed.codes * packed.scales[:, None] - w).abs().max()) <= float(packed.scales.max()) * 0.5001
    # |dx| <= sx / 2 and |dw| <= sw / 2 an element, so that a sum of n_in is off by no more than this
    steps = x.abs().amax(1, keepdim=True) / 127
    bound = (steps / 2 * w.abs().sum(1) + packed.scales / 2 * (x.abs() + steps / 2).sum(1, keepdim=True)) * 1.001 + 1e-5
    assert ((linear(x, packed) - x @ w.T).abs() <= bound).all()


def test_whole_numbers_come_out_exactly(kit):
    w, x = torch.eye(16, device=kit.device) * 127, torch.arange(-127, 125, 16, device=kit.device).float()[None]
    assert linear(x, Packed8.of(w)).equal(x * 127)


def test_a_row_of_zeros_is_zero_and_rows_do_not_share_scales(kit):
    w, x = kit.randn(8, 16), kit.randn(3, 16, seed=1)
    x[0], x[2] = 0, x[1] * 1000
    found = linear(x, Packed8.of(w))
    assert found[0].eq(0).all()
    torch.testing.assert_close(found[2], found[1] * 1000, rtol=1e-4, atol=1e-3)
