import torch

from megatron_prime.algorithm.estimators import grpo, istar
from megatron_prime.algorithm.registry import Requirements
from tests.algorithm import dialogues
from tests.algorithm.advantages import PLAIN
from tests.algorithm.dialogues import Dialogues
from tests.algorithm.oracle import replace

OPTIONS = replace(PLAIN, estimator="istar")


def turns_of(batch):
    """Rewards, mask and positions of the turns of a batch."""
    marks = [batch.positions(i, "turn", True) for i in range(len(batch.ids))]
    rewards = [
        [r if is_one else 0.0 for r, is_one in zip(row, of_row, strict=True)]
        for row, of_row in zip(batch.rewards, marks, strict=True)
    ]
    return rewards, marks


def process_of(estimator, batch, rewards, marks):
    return estimator(OPTIONS).process_advantages_BT(
        batch.padded(rewards, padding=0.0),
        batch.mask_BT,
        batch.padded(marks, padding=0.0).bool(),
        batch.group_ids_B,
    )


def test_it_compares_the_turns_of_a_group():
    assert istar.Estimator.requires == Requirements(group=True, prm=True, turns=True)


def test_every_token_of_a_turn_has_its_reward_in_standard_deviations_of_all_turns():
    for seed in range(5):
        batch = Dialogues(seed)
        rewards, marks = turns_of(batch)
        result_BT = process_of(istar.Estimator, batch, rewards, marks)
        expected_BT = batch.padded(dialogues.process_part(batch, rewards, marks, OPTIONS), padding=0.0)
        torch.testing.assert_close(result_BT, expected_BT)


def test_outcomes_and_responses_of_one_turn_are_those_of_grpo():
    batch = Dialogues(7, max_turns=1, has_replies=False)
    rewards, marks = turns_of(batch)
    torch.testing.assert_close(
        process_of(istar.Estimator, batch, rewards, marks), process_of(grpo.Estimator, batch, rewards, marks)
    )
    outcomes = (batch.outcome_rewards_B, batch.group_ids_B)
    assert torch.equal(
        istar.Estimator(OPTIONS).outcome_advantages_B(*outcomes),
        grpo.Estimator(OPTIONS).outcome_advantages_B(*outcomes),
    )


def test_equal_rewards_of_turns_have_no_advantage():
    batch = Dialogues(8, dtype=torch.float32)
    _, marks = turns_of(batch)
    rewards = [[0.1 if is_one else 0.0 for is_one in row] for row in marks]
    assert not process_of(istar.Estimator, batch, rewards, marks).any()
