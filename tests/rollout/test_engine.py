"""Every engine has the methods and parameters of the protocol."""

import inspect

import pytest

from megatron_prime.engines.local.engine import LocalEngine
from megatron_prime.engines.sglang.engine import SGLangEngine
from megatron_prime.rollout.engine import NO_WEIGHTS, CheckpointEngine, Engine

MEMBERS = [name for name in vars(Engine) if not name.startswith("_")]


def test_the_protocol_is_what_the_trainer_uses():
    assert set(MEMBERS) == {
        "policy_version",
        "stream",
        "generate",
        "while_training",
        "release_memory",
        "close",
    }


@pytest.mark.parametrize("engine", [LocalEngine, SGLangEngine])
@pytest.mark.parametrize("name", [*MEMBERS, "load_from_hf"])
def test_every_engine_has_the_same_signatures(engine, name):
    wanted, given = getattr(CheckpointEngine, name), getattr(engine, name)
    if isinstance(wanted, property):
        assert isinstance(given, property)
    else:
        assert inspect.signature(given).parameters == inspect.signature(wanted).parameters


def test_no_weights_is_not_a_policy_version():
    assert NO_WEIGHTS < 0
