"""Advantages of the oracle's batches, for the tests of `prime_advantages` and of each estimator."""

import torch

from megatron_prime.algorithm.advantage import prime_advantages
from megatron_prime.config.tables.advantage import AdvantageConfig

RAGGED = (2, 5, 3)
"""Sizes of groups."""
RELEASED = AdvantageConfig()
PLAIN = AdvantageConfig(process_baseline="sequence_sum", process_normalization="none", whitening="none")


def advantages_of(batch, options, rewards_BT=None, rows=None, positions_BT=None):
    rows = torch.arange(len(batch.ids)) if rows is None else rows
    rewards_BT = batch.rewards_BT if rewards_BT is None else rewards_BT
    positions_BT = None if positions_BT is None else positions_BT[rows]
    return prime_advantages(
        batch.outcome_rewards_B[rows],
        rewards_BT[rows],
        batch.mask_BT[rows],
        batch.group_ids_B[rows],
        options,
        positions_BT,
    )
