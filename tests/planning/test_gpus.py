"""Names of GPUs are case-insensitive, figures can be changed, and unknown ones are reported."""

import pytest

from megatron_prime.planning.gpus import KNOWN, gpu_of


def test_figures_can_be_changed_by_name():
    gpu = gpu_of("h100-80g", {"memory_gib": 60.0, "gpus_per_node": 4.0})
    assert (gpu.name, gpu.memory_gib, gpu.gpus_per_node) == ("H100-80G", 60.0, 4)
    assert gpu.bf16_tflops == KNOWN["H100-80G"].bf16_tflops


@pytest.mark.parametrize(
    ("name", "changes", "fault"),
    [
        ("H1000", {}, "unknown GPU 'H1000'; known are H100-80G"),
        ("B200", {"speed": 1.0}, "no figure 'speed'; it has bf16_tflops"),
        ("B200", {"memory_gib": 0.0}, "memory_gib = 0.0 must be positive"),
    ],
)
def test_unknown_names_and_figures_are_reported(name, changes, fault):
    with pytest.raises(ValueError, match=fault):
        gpu_of(name, changes)
