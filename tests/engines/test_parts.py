"""Every kind of engine is built in the same way."""

import inspect

import pytest

from megatron_prime.cli.assemble import ENGINES
from megatron_prime.config.tables.rollout import RolloutConfig
from megatron_prime.engines.parts import EngineParts


def test_every_engine_of_the_configuration_has_a_builder():
    values = RolloutConfig.model_fields["engine"].annotation.__args__
    assert set(ENGINES) == set(values)


@pytest.mark.parametrize("name", ENGINES)
def test_builders_take_the_configuration_the_layout_and_the_rank(name):
    signature = inspect.signature(ENGINES[name])
    assert list(signature.parameters) == ["config", "topology", "ranks"]
    assert signature.return_annotation is EngineParts
