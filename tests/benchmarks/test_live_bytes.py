"""Bytes counted by hand."""

import torch

from benchmarks.live_bytes import LiveBytes


def test_peak_live_and_largest_of_a_few_operations():
    known = torch.zeros(1000)
    with LiveBytes(known=[known]) as counted:
        first = known + 1  # 4000
        view = first.view(10, 100)[2:]
        second = torch.cat([first, first])  # 8000 more
        assert counted.live == counted.peak == 12000
        second = second.double()  # 16000 more, and then the float one goes
        assert (counted.live, counted.peak) == (20000, 28000)
        del first
        assert counted.live == 20000, "the view keeps its storage"
        del view
        assert counted.live == 16000
        known.add_(1)
        second.mul_(2)
        assert counted.live == 16000
    assert counted.peak == 28000
    assert counted.largest == 2000


def test_tensors_saved_by_autograd_are_alive():
    known = torch.ones(1000, requires_grad=True)
    with LiveBytes(known=[known]) as counted:
        result = known.exp().exp().sum()
        assert counted.live == 2 * 4000 + 4
        result.backward()
        assert counted.live == 4000 + 4, "the gradient and the result"
