import torch

from megatron_prime.algorithm.estimators import grpo, spro
from megatron_prime.algorithm.registry import Requirements
from tests.algorithm import oracle
from tests.algorithm.advantages import PLAIN
from tests.algorithm.dialogues import Dialogues, random_order
from tests.algorithm.oracle import replace

OPTIONS = replace(PLAIN, estimator="spro")


def process_of(batch, positions_BT, order=slice(None)):
    rewards_BT = torch.where(batch.mask_BT, batch.rewards_BT, 0.0)
    inputs = (rewards_BT, batch.mask_BT, positions_BT, batch.group_ids_B)
    return spro.Estimator(OPTIONS).process_advantages_BT(*(each[order] for each in inputs))


def expected(batch, marks):
    """The running sum of each token less the mean of those of the group's responses that carry a reward there."""
    rows = []
    for i, own in enumerate(batch.rewards):
        row = []
        for t, is_one in enumerate(marks[i]):
            there = [j for j in oracle.members(batch.ids, i) if t < len(marks[j]) and marks[j][t]]
            baseline = sum(sum(batch.rewards[j][: t + 1]) for j in there) / max(len(there), 1)
            row.append(sum(own[: t + 1]) - baseline if is_one else 0.0)
        rows.append(row)
    return batch.padded(rows, padding=0.0)


def test_it_compares_running_sums_of_tokens():
    needed = {"group", "prm", "undiscounted_process", "own_credit", "tokens"}
    assert spro.Estimator.requires == Requirements(**dict.fromkeys(needed, True))


def test_advantages_are_those_of_the_loops_in_any_order():
    for seed in range(6):
        batch = Dialogues(seed, has_replies=seed > 1, extra_padding=seed % 2)
        marks = batch.writers if seed % 2 else [[True] * n for n in batch.lengths]
        positions_BT = batch.padded(marks, padding=0.0).bool()
        order = random_order(len(batch.ids), seed)
        torch.testing.assert_close(process_of(batch, positions_BT, order), expected(batch, marks)[order])


def test_equal_responses_have_no_advantage_and_the_longest_one_none_at_its_end():
    batch = Dialogues(2, sizes=(2,), has_replies=False, max_turns=1)
    batch.lengths, batch.num_columns = [2, 4], 4
    batch.rewards = [[1.0, 2.0], [1.0, 2.0, 5.0, 7.0]]
    assert not process_of(batch, batch.mask_BT).any()


def test_outcomes_are_those_of_grpo():
    batch = Dialogues(5)
    outcomes = (batch.outcome_rewards_B, batch.group_ids_B)
    assert torch.equal(
        spro.Estimator(OPTIONS).outcome_advantages_B(*outcomes),
        grpo.Estimator(OPTIONS).outcome_advantages_B(*outcomes),
    )
