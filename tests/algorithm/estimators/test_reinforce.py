import torch

from megatron_prime.algorithm.estimators import reinforce
from megatron_prime.algorithm.registry import Requirements
from tests.algorithm import oracle
from tests.algorithm.advantages import PLAIN, RAGGED
from tests.algorithm.oracle import Batch, replace


def test_rewards_are_taken_as_they_are_and_a_group_is_not_needed():
    batch = Batch(3, sizes=RAGGED)
    estimator = reinforce.Estimator(replace(PLAIN, gamma_process=0.9))
    assert estimator.requires == Requirements()
    outcomes_B = batch.outcome_rewards_B
    assert torch.equal(estimator.outcome_advantages_B(outcomes_B, batch.group_ids_B), outcomes_B)
    result_BT = estimator.process_advantages_BT(
        batch.padded(batch.rewards, padding=0.0), batch.mask_BT, batch.mask_BT, batch.group_ids_B
    )
    expected = [oracle.returns(row, 0.9) for row in batch.rewards]
    torch.testing.assert_close(result_BT, batch.padded(expected, padding=0.0))
