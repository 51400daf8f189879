import pytest

from megatron_prime.algorithm.registry import ESTIMATORS, POLICY_LOSSES, PRM_OBJECTIVES
from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.tables.advantage import AdvantageConfig
from megatron_prime.config.tables.policy import PolicyConfig
from megatron_prime.config.tables.prm import PRMConfig

REGISTRIES = {
    ESTIMATORS: (AdvantageConfig(), {"rloo", "grpo", "reinforce", "prm_value"}),
    PRM_OBJECTIVES: (
        PRMConfig(),
        {"ce", "dpo", "bon_acc", "bon_rm"},
    ),
    POLICY_LOSSES: (PolicyConfig(), {"ppo_clip"}),
}


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.option)
def test_every_built_in_name_can_be_constructed(registry):
    section, expected = REGISTRIES[registry]
    assert expected <= set(registry.names())
    for name in registry.names():
        assert registry.load(name)(section).config is section
        assert list(registry.faults(name)) == []


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.option)
def test_the_default_of_the_option_is_a_built_in_name(registry):
    section, _ = REGISTRIES[registry]
    table, _, name = registry.option.partition(".")
    assert isinstance(section, PrimeConfig.model_fields[table].annotation)
    assert getattr(section, name) in registry.names()


def test_a_built_in_name_is_short_for_an_import_path():
    path = "megatron_prime.algorithm.estimators.grpo:Estimator"
    assert ESTIMATORS.load(path) is ESTIMATORS.load("grpo")


def test_an_unknown_name_lists_those_that_are_known():
    with pytest.raises(ValueError, match=f"known names are {', '.join(ESTIMATORS.names())}"):
        ESTIMATORS.load("gea")
