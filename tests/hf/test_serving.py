"""The memory that a server needs, by hand."""

import pytest

from megatron_prime.hf.serving import cache_tokens, kv_bytes_per_token, num_parameters
from megatron_prime.hf.shape import ModelShape
from tests.support.planned_runs import PUBLIC

LLAMA = ModelShape.from_hf_config(PUBLIC["Llama-3-70B"])


def test_parameters_are_those_of_the_published_models():
    assert num_parameters(LLAMA) == 70_553_706_496
    assert num_parameters(ModelShape.from_hf_config(PUBLIC["Qwen2.5-7B"])) == 7_615_616_512


@pytest.mark.parametrize(("tensor", "heads"), [(1, 8), (4, 2), (8, 1), (16, 1)])
def test_a_token_takes_keys_and_values_of_the_heads_of_a_rank(tensor, heads):
    assert kv_bytes_per_token(LLAMA, tensor=tensor) == 2 * heads * 128 * 80 * 2


def test_the_cache_has_what_the_weights_leave():
    weights = 2 * 70_553_706_496 // 8
    assert cache_tokens(LLAMA, 8, weights + 10 * 40_960 + 5) == 10
    assert cache_tokens(LLAMA, 8, weights - 1) == 0
