"""Mixtral: sizes of its experts, and files that are refused."""

import pytest

from megatron_prime.hf.config_json import shape_fields
from megatron_prime.hf.shape import ModelShape
from tests.support.hf_shapes import make_config


def test_sizes_of_experts():
    shape = ModelShape.from_hf_config(make_config("mixtral"))
    assert (shape.num_experts, shape.num_experts_per_tok, shape.moe_ffn_hidden_size) == (4, 2, 20)
    assert shape.norm_topk_prob


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_local_experts": None}, "lacks num_experts or num_local_experts"),
        ({"sliding_window": 8}, "sliding window"),
    ],
)
def test_an_unsupported_config_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        shape_fields(make_config("mixtral", **changes))
