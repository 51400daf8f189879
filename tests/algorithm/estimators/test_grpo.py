import torch

from megatron_prime.algorithm.estimators import grpo
from tests.algorithm import oracle
from tests.algorithm.advantages import PLAIN, advantages_of
from tests.algorithm.oracle import Batch, replace


def test_it_compares_responses_of_a_group():
    assert grpo.Estimator.requires.group


def test_a_response_is_measured_in_standard_deviations_of_its_group():
    estimator = grpo.Estimator(PLAIN)
    outcomes_B, group_ids_B = torch.tensor([1.0, 0.0, 0.5, 0.25]).double(), torch.tensor([3, 3, 8, 8])
    expected = [
        (value - oracle.mean(group)) / oracle.std(group)
        for group in ([1.0, 0.0], [0.5, 0.25])
        for value in group
    ]
    torch.testing.assert_close(
        estimator.outcome_advantages_B(outcomes_B, group_ids_B), torch.tensor(expected).double()
    )


def test_grpo_ignores_a_process_contrast_that_is_rounding():
    batch = Batch(9, sizes=(4,), dtype=torch.float32)
    rewards = [[0.1 * n / n] * n for n in batch.lengths]
    rewards[0] = [0.1 + 1e-8] * batch.lengths[0]
    options = replace(PLAIN, estimator="grpo", outcome_coef=0.0)
    assert not advantages_of(batch, options, batch.padded(rewards)).any()
