import pytest
from pydantic import ValidationError

from megatron_prime.config.tables.performance.memory import MemoryConfig, RecomputeConfig


def test_only_selective_recomputes_single_modules():
    assert RecomputeConfig(granularity="selective", modules=("layernorm",)).recomputes("layernorm")
    assert not RecomputeConfig(granularity="selective").recomputes("layernorm")
    assert not RecomputeConfig(granularity="full").recomputes("mlp")


def test_offloaded_parts_depend_on_the_role():
    memory = MemoryConfig(offload_policy_optimizer=True, offload_reference=True)
    assert memory.offloaded_parts("policy") == {"gradients", "optimizer"}
    assert memory.offloaded_parts("reference") == {"weights", "gradients", "optimizer"}
    assert not memory.offloaded_parts("prm")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"granularity": "selective", "modules": ()}, "recomputes nothing"),
        ({"granularity": "selective", "num_layers": 2}, "belong to granularity = 'full'"),
    ],
)
def test_settings_of_another_granularity_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        RecomputeConfig(**values)
