"""The meter counts large tensors alone, and sees them go."""

import torch

from benchmarks.controller.meter import Meter


def test_large_operations_and_live_tensors_are_counted():
    small, large = torch.ones(10), torch.ones(1000)
    with Meter(1000) as meter:
        small + 1
        kept = large + 1
        kept[:5].neg()
        assert (meter.count, meter.bytes, meter.live) == (2, 8000, 4000), "a view costs nothing"
        (kept * 2).sum()
        assert (meter.live, meter.peak) == (4000, 8000)
        first = meter.take()
        assert first["peak"] == 8000 and first["count"] == 4 and first["tensor_s"] >= 0
        del kept
        assert (meter.live, meter.take()["peak"]) == (0, 4000)
    assert [(size, shape) for size, shape, _ in meter.at_peak] == [(4000, "(1000,) float32")] * 2
