"""Tests of the per-logit operations in plain torch against float64; the Triton kernels run the same cases."""

import pytest

from megatron_prime.logprobs.tiles import TorchTileMath
from tests.logprobs.kernel_cases import LOGIT_CASES, NOT_FINITE, check_not_finite, check_walk, walk


@pytest.mark.parametrize("name", LOGIT_CASES)
def test_statistics_and_gradients_of_tiles_follow_the_definition(name):
    check_walk(LOGIT_CASES[name], walk(TorchTileMath, **LOGIT_CASES[name]))


def test_a_non_finite_logit_makes_the_entropy_nan():
    check_not_finite(walk(TorchTileMath, **NOT_FINITE))
