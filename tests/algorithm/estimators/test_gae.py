import itertools

import pytest
import torch

from megatron_prime.algorithm.advantage import advantage_parts, joined_parts
from megatron_prime.algorithm.estimators import gae
from megatron_prime.algorithm.prm_objectives.value import Objective
from megatron_prime.algorithm.process_credit import credited_rewards
from megatron_prime.algorithm.registry import Requirements
from megatron_prime.config.tables.prm import PRMConfig
from tests.algorithm import oracle
from tests.algorithm.advantages import PLAIN
from tests.algorithm.dialogues import Dialogues, random_order
from tests.algorithm.oracle import replace


def advantages_of(batch, lam, scored, order=slice(None)):
    """Advantages with the rewards of the batch as logits of the states before the tokens."""
    prm = PRMConfig(loss="value", scored_tokens=scored)
    mask_BT, policy_BT = batch.mask_BT[order], batch.policy_mask_BT[order]
    scored_BT = mask_BT if scored == "all" else policy_BT
    logits_BT = torch.where(scored_BT, batch.rewards_BT[order], 0.0)
    outcomes_B, ids_B = batch.outcome_rewards_B[order], batch.group_ids_B[order]
    logits_BL = Objective(prm).prefix_logits_BL(logits_BT, scored_BT, torch.zeros_like(outcomes_B))
    inputs = (logits_BT, torch.zeros_like(logits_BT), mask_BT, prm, "td", None, policy_BT, logits_BL)
    credited = credited_rewards(*inputs)
    config = replace(PLAIN, estimator="gae", gamma_process=lam, gamma_outcome=lam, process_credit="td")
    rewards = (credited.rewards_BT, mask_BT, ids_B, config, credited.positions_BT)
    return joined_parts(advantage_parts(outcomes_B, *rewards, policy_mask_BT=policy_BT), policy_BT, config)


def expected(batch, lam, scored):
    """The sums over deltas, token by token; an unscored token has the value of the next scored state."""
    rows = []
    for i, logits in enumerate(batch.rewards):
        writers = batch.writers[i]
        values = [0.0]
        for logit, is_policy in zip(reversed(logits), reversed(writers), strict=True):
            values.append(oracle.sigmoid(logit) if is_policy or scored == "all" else values[-1])
        deltas = [after - before for before, after in itertools.pairwise(reversed(values))]
        deltas[-1] += batch.outcomes[i]
        own = [sum(lam**k * delta for k, delta in enumerate(deltas[t:])) for t in range(len(deltas))]
        rows.append([a if is_policy else 0.0 for a, is_policy in zip(own, writers, strict=True)])
    return batch.padded(rows, padding=0.0)


def test_it_needs_a_critic():
    assert gae.Estimator.requires == Requirements(prm=True, value_differences=True, critic=True)


@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("scored", ["all", "policy"])
@pytest.mark.parametrize("has_replies", [False, True])
def test_advantages_are_those_of_the_loops_in_any_order(lam, scored, has_replies):
    for seed in range(4):
        batch = Dialogues(seed, has_replies=has_replies, extra_padding=seed)
        order = random_order(len(batch.ids), seed)
        result_BT = advantages_of(batch, lam, scored, order)
        torch.testing.assert_close(result_BT, expected(batch, lam, scored)[order])


def test_with_a_lambda_of_one_the_value_is_a_baseline_of_the_outcome():
    batch = Dialogues(3, has_replies=False)
    result_BT = advantages_of(batch, 1.0, "all")
    for i, logits in enumerate(batch.rewards):
        own = [batch.outcomes[i] - oracle.sigmoid(logit) for logit in logits]
        assert result_BT[i, : len(own)].tolist() == pytest.approx(own)
