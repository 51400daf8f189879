"""The embedded engine keeps the contract of the Protocol, name by name and parameter by parameter."""

import inspect

import pytest

from megatron_prime.engines.local.engine import LocalEngine
from megatron_prime.rollout.engine import NO_WEIGHTS, Engine

MEMBERS = [name for name in vars(Engine) if not name.startswith("_")]


def test_the_protocol_is_what_the_trainer_uses():
    assert set(MEMBERS) == {
        "policy_version",
        "generate",
        "release_memory",
        "begin_weight_update",
        "load_weights",
        "end_weight_update",
        "weight_checksums",
        "close",
    }


@pytest.mark.parametrize("name", MEMBERS)
def test_the_embedded_engine_has_the_same_signature(name):
    wanted, given = getattr(Engine, name), getattr(LocalEngine, name)
    if isinstance(wanted, property):
        assert isinstance(given, property)
    else:
        assert inspect.signature(given) == inspect.signature(wanted)


def test_no_version_of_a_policy_reads_as_no_weights():
    assert NO_WEIGHTS < 0
