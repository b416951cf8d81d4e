"""Adapters: each row gets its own, and no other's."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.kernels.triton.lora import add_adapters


@settings(max_examples=12, deadline=None)
@given(
    adapters=st.lists(st.integers(-1, 2), min_size=0, max_size=5),
    sizes=st.sampled_from([(64, 64, 8), (96, 40, 16), (600, 33, 5)]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 9),
)
def test_each_row_gets_its_own_adapter(kit, adapters, sizes, dtype, seed):
    n_in, n_out, rank = sizes
    x, y = kit.randn(len(adapters), n_in, seed=seed, dtype=dtype), kit.randn(len(adapters), n_out, seed=seed + 1, dtype=dtype)
    a = kit.randn(3, rank, n_in, seed=seed + 2, dtype=dtype) * n_in**-0.5
    b = kit.randn(3, n_out, rank, seed=seed + 3, dtype=dtype)
    scales = torch.tensor([0.5, 2.0, -1.0], device=kit.device)
    before, exact = y.clone(), y.double()
    for row, i in enumerate(adapters):
        if i >= 0:
            exact[row] += float(scales[i]) * (b[i].double() @ (a[i].double() @ x[row].double()))
    add_adapters(y, x, a, b, scales, torch.tensor(adapters, dtype=torch.int32, device=kit.device))
    kit.near(y, exact, dtype)
    for row, i in enumerate(adapters):
        assert i >= 0 or y[row].equal(before[row]), "a row without an adapter is not touched"


def test_a_broken_adapter_harms_its_own_rows_only(kit):
    a, b = kit.randn(2, 4, 32), kit.randn(2, 24, 4, seed=1)
    a[1] = torch.nan
    y = torch.zeros(3, 24, device=kit.device)
    x, which = kit.randn(3, 32, seed=2), torch.tensor([0, 1, -1], dtype=torch.int32, device=kit.device)
    add_adapters(y, x, a, b, torch.ones(2, device=kit.device), which)
    assert y[0].isfinite().all() and y[1].isnan().all() and y[2].eq(0).all()
