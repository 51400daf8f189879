"""Names are found however they are written, figures can be changed, and what is unknown is told."""

import pytest

from megatron_prime.planning.gpus import KNOWN, gpu_of


def test_figures_can_be_changed_by_name():
    gpu = gpu_of("h100-80g", {"memory_gib": 60.0, "gpus_per_node": 4.0})
    assert (gpu.name, gpu.memory_gib, gpu.gpus_per_node) == ("H100-80G", 60.0, 4)
    assert gpu.bf16_tflops == KNOWN["H100-80G"].bf16_tflops


@pytest.mark.parametrize(
    ("name", "changes", "fault"),
    [
        ("H1000", {}, "'H1000' is not known; known are H100-80G"),
        ("B200", {"speed": 1.0}, "no figure 'speed'; it has bf16_tflops"),
        ("B200", {"memory_gib": 0.0}, "memory_gib = 0.0 must be positive"),
    ],
)
def test_what_is_unknown_is_told(name, changes, fault):
    with pytest.raises(ValueError, match=fault):
        gpu_of(name, changes)
