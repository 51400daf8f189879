"""The grid has the expected models and size, and every plan sends the minimum number of bytes."""

from benchmarks.reshard_layouts import LLAMA_70B, MOE_1T, QWEN3_235B, bytes_over_lower_bound, grid
from megatron_prime.hf.mapping import hf_tensors


def num_parameters(shape):
    count = 0
    for dims in hf_tensors(shape).values():
        size = 1
        for dim in dims:
            size *= dim
        count += size
    return count


def test_the_models_have_their_published_sizes():
    assert round(num_parameters(LLAMA_70B) / 1e9, 1) == 70.6
    assert round(num_parameters(QWEN3_235B) / 1e9) == 235
    assert round(num_parameters(MOE_1T) / 1e12, 2) == 1.04


def test_no_layout_sends_more_than_it_must():
    cases = list(grid(quick=False))
    assert len(cases) >= 50
    found = bytes_over_lower_bound(cases[::20])
    assert set(found) == {"Llama-70B", "Qwen3-235B"}
    assert all(entry["worst_ratio"] == 1 for entry in found.values())
