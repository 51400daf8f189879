"""A conversion in either direction needs less memory than twice the largest tensor of a model that is larger still."""

import pytest

from benchmarks.conversion import largest_tensor, measure, write_model

BUFFERS = 48 << 20
"""Allowance for comparison buffers, imports and the allocator."""


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [512])
def test_peak_memory_is_bounded_by_the_largest_tensor(hidden, tmp_path):
    size = write_model(tmp_path / "hf", hidden=hidden, ffn=4096, vocab=65536, layers=8)
    largest = largest_tensor(tmp_path / "hf")
    assert largest == 2 * 65536 * hidden
    assert size > 3 * largest
    for direction, source, output in (("to Megatron", "hf", "megatron"), ("to HF", "megatron", "back")):
        peak, _ = measure(direction, tmp_path / source, tmp_path / output)
        assert peak < 2 * largest + BUFFERS, (direction, peak, largest, size)
    first, second = (tmp_path / name / "model.safetensors" for name in ("hf", "back"))
    assert first.read_bytes() == second.read_bytes()
