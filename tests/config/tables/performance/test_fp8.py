import pytest
from pydantic import ValidationError

from megatron_prime.config.tables.performance.fp8 import Fp8Config
from megatron_prime.config.tables.performance.overlap import OverlapConfig


def test_the_reference_uses_the_recipe_of_the_prm():
    fp8 = Fp8Config(policy="delayed", prm="blockwise")
    assert [fp8.recipe_of(role) for role in ("policy", "prm", "reference")] == [
        "delayed",
        "blockwise",
        "blockwise",
    ]


def test_only_prm_and_reference_have_fp8_weights():
    fp8 = Fp8Config(policy="tensorwise", prm="tensorwise", primary_weights=True)
    assert [fp8.has_primary_weights(role) for role in ("policy", "prm", "reference")] == [False, True, True]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prm": "delayed"}, "differs between PRM and reference"),
        ({"prm": "tensorwise", "reference": "blockwise"}, "noise where they must be 0; leave reference out"),
        ({"prm": "tensorwise", "reference": "none"}, "reference = 'none' differs from prm = 'tensorwise'"),
        ({"policy": "delayed", "bf16_layers_at_start": 1}, "cannot be combined with 'delayed'"),
        ({"policy": "tensorwise", "primary_weights": True}, "set prm too"),
        ({"policy": "fp4"}, "Input should be 'none', 'delayed'"),
    ],
)
def test_contradictory_recipes_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        Fp8Config(**values)


def test_param_gather_needs_grad_reduce():
    with pytest.raises(ValidationError, match="needs grad_reduce = true"):
        OverlapConfig(param_gather=True)
