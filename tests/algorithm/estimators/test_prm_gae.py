import itertools

import pytest
import torch

from megatron_prime.algorithm.advantage import advantage_parts, joined_parts
from megatron_prime.algorithm.estimators import prm_gae
from megatron_prime.algorithm.groups import prior_logits_B
from megatron_prime.algorithm.prm_rows import SummedPrefixes
from megatron_prime.algorithm.process_credit import credited_rewards
from megatron_prime.algorithm.registry import Requirements
from megatron_prime.config.tables.prm import PRMConfig
from tests.algorithm import oracle
from tests.algorithm.advantages import PLAIN
from tests.algorithm.dialogues import Dialogues, random_order
from tests.algorithm.oracle import replace

PRM = PRMConfig(beta=0.7)


def advantages_of(batch, lam, order=slice(None), **options):
    """Advantages with the rewards of the batch as log-ratios."""
    ratios_BT = torch.where(batch.mask_BT, batch.rewards_BT, 0.0)[order]
    mask_BT, policy_BT = batch.mask_BT[order], batch.policy_mask_BT[order]
    outcomes = batch.outcome_rewards_B[order], batch.group_ids_B[order]
    logits_BL = SummedPrefixes(PRM).prefix_logits_BL(ratios_BT, mask_BT, prior_logits_B(*outcomes))
    inputs = (ratios_BT, torch.zeros_like(ratios_BT), mask_BT, PRM, "td", None, policy_BT, logits_BL)
    credited = credited_rewards(*inputs)
    config = replace(
        PLAIN, estimator="prm_gae", gamma_process=lam, gamma_outcome=lam, process_credit="td", **options
    )
    rewards = (credited.rewards_BT, mask_BT, outcomes[1], config, credited.positions_BT)
    parts = advantage_parts(outcomes[0], *rewards, policy_mask_BT=policy_BT)
    return joined_parts(parts, policy_BT, config)


def expected(batch, lam):
    """The sums over deltas, token by token."""
    rows = []
    for i, ratios in enumerate(batch.rewards):
        prior = oracle.prior_logit(batch.outcomes, batch.ids, i)
        values = [oracle.sigmoid(prior + PRM.beta * sum(ratios[:t])) for t in range(len(ratios) + 1)]
        deltas = [after - before for before, after in itertools.pairwise(values)]
        deltas[-1] = batch.outcomes[i] - values[-2]
        own = [sum(lam**k * delta for k, delta in enumerate(deltas[t:])) for t in range(len(deltas))]
        rows.append([a if is_policy else 0.0 for a, is_policy in zip(own, batch.writers[i], strict=True)])
    return batch.padded(rows, padding=0.0)


def test_it_needs_differences_of_values():
    assert prm_gae.Estimator.requires == Requirements(prm=True, value_differences=True)


@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("has_replies", [False, True])
def test_advantages_are_those_of_the_loops_in_any_order(lam, has_replies):
    for seed in range(4):
        batch = Dialogues(seed, has_replies=has_replies, extra_padding=seed)
        order = random_order(len(batch.ids), seed)
        torch.testing.assert_close(advantages_of(batch, lam, order), expected(batch, lam)[order])


def test_without_the_process_part_the_outcomes_have_a_baseline():
    batch = Dialogues(3)
    result_BT = advantages_of(batch, 1.0, process_coef=0.0)
    for i, outcome in enumerate(batch.outcomes):
        value = oracle.sigmoid(oracle.prior_logit(batch.outcomes, batch.ids, i))
        assert result_BT[i, 0].item() == pytest.approx(outcome - value)
