import pytest

from megatron_prime.algorithm.estimators import prm_value
from megatron_prime.algorithm.registry import Requirements
from tests.algorithm.advantages import PLAIN, advantages_of
from tests.algorithm.oracle import Batch, replace


def test_it_needs_a_prm_whose_rewards_are_not_discounted():
    assert prm_value.Estimator.requires == Requirements(prm=True, undiscounted_process=True, own_credit=True)


def test_prm_value_starts_from_the_bare_outcome():
    batch = Batch(13)
    result_BT = advantages_of(batch, replace(PLAIN, estimator="prm_value"))
    assert result_BT[:, 0].tolist() == pytest.approx(batch.outcomes)
