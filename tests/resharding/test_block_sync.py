"""After a push, every engine equals the HF model in all tensors and in its greedy responses."""

import pytest
import torch

from megatron_prime.rollout.weight_intake import tensor_checksum
from tests.resharding.resharding_worker import CASES
from tests.support.layout_worker import hf_weights

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
each_layout_and_model = pytest.mark.parametrize("key", CASES, ids=": ".join)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture
def reports(key, dtype, resharded):
    return [of_rank["syncs"][dtype] for of_rank in resharded[key]]


@pytest.fixture
def versions(key, resharded_models):
    return [model for _, model in resharded_models[key[1]]]


def checksums(model, dtype):
    return {name: tensor_checksum(tensor.to(DTYPES[dtype])) for name, tensor in hf_weights(model).items()}


@each_dtype
@each_layout_and_model
def test_every_tensor_of_every_engine_is_bit_equal(dtype, reports, versions):
    first, second = (checksums(model, dtype) for model in versions)
    assert first != second
    for report in reports:
        assert report["checksums"] == [first, first, second]


@each_dtype
@each_layout_and_model
def test_the_engine_serves_the_version_that_was_pushed(dtype, reports):
    for report in reports:
        assert report["version"] == [-1, 3, 3, 4]


@pytest.mark.parametrize("dtype", ["fp32"])
@each_layout_and_model
def test_greedy_responses_equal_hf_before_and_after_an_update(dtype, reports, versions, greedy_responses):
    first, second = (greedy_responses(model) for model in versions)
    assert first != second
    for report in reports:
        assert report["responses"] == [first, first, second]


@pytest.mark.parametrize("dtype", ["bf16"])
@each_layout_and_model
def test_all_ranks_hold_the_same_responses(dtype, reports):
    for report in reports:
        assert report["responses"] == reports[0]["responses"]
        assert report["responses"][0] == report["responses"][1] != report["responses"][2]
