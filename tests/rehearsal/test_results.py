"""Remembered results equal those of torch."""

import pytest
import torch

from megatron_prime.rehearsal.results import Results

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("func", "args", "kwargs"),
    [
        (aten.mm.default, (torch.empty(3, 4, device="meta"), torch.empty(4, 5, device="meta")), {}),
        (
            aten.add.Tensor,
            (torch.empty(3, 4, device="meta").T, torch.empty(4, 1, device="meta")),
            {"alpha": 2},
        ),
        (aten.sum.dim_IntList, (torch.empty(3, 4, device="meta"), [1]), {"dtype": torch.float64}),
        (aten.max.dim, (torch.empty(3, 4, device="meta"), 1), {}),
        (aten.add_.Tensor, (torch.empty(3, device="meta"), 1.0), {}),
    ],
)
def test_the_second_call_has_the_form_of_the_first(func, args, kwargs):
    results = Results()
    first, second = results.run(func, args, kwargs), results.run(func, args, kwargs)
    pairs = [(first, second)] if isinstance(first, torch.Tensor) else zip(first, second, strict=True)
    for one, other in pairs:
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)
        assert other.is_meta
    if func is aten.add_.Tensor:
        assert second is args[0]


def test_a_wrong_shape_is_an_error_each_time():
    results = Results()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            results.run(
                aten.mm.default, (torch.empty(3, 4, device="meta"), torch.empty(3, 5, device="meta")), {}
            )
