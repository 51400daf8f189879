"""Signs that a PRM rewards something else than right steps, measured on a training batch without human labels.

Each is a known way in which process rewards mislead. A PRM that sees only whether the end looks finished has its lowest
reward on the last step of every response. One that counts tokens prefers long or short responses. One that has learnt a
format pays for white space and punctuation.

Every function takes the global batch and returns float64 numbers on its device, NaN where there is nothing to count.

Shapes: B responses, T response tokens (right padded).
"""

import torch
from torch import Tensor

from megatron_prime.algorithm.checks import check_rows, check_shapes
from megatron_prime.algorithm.groups import group_table
from megatron_prime.algorithm.implicit_reward import last_positions_BT
from megatron_prime.algorithm.tensor_ops import zero_padding


@torch.no_grad()
def lowest_on_last(rewards_BT: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return how often the lowest reward of a response is its last one, and how often that would be by chance.

    Both are means over the responses with at least two rewards. Of equally low rewards each counts its share, so that a
    PRM that equals its reference is at chance. Chance is 1 / (number of rewards).

    Args:
        rewards_BT: process rewards.
        positions_BT: bool, the tokens, or the last tokens of steps or turns, that carry them.

    Raises:
        ValueError: shapes differ.
    """
    check_shapes(positions_BT.shape, rewards_BT=rewards_BT)
    positions_BT = positions_BT.bool()
    sizes_B = positions_BT.sum(dim=1)
    lowest_B1 = rewards_BT.masked_fill(~positions_BT, torch.inf).min(dim=1, keepdim=True).values
    is_lowest_BT = positions_BT & (rewards_BT == lowest_B1)
    shares_B = (is_lowest_BT & last_positions_BT(positions_BT)).sum(dim=1).double() / is_lowest_BT.sum(
        dim=1
    ).clamp(min=1)
    counted_B = sizes_B >= 2
    return _mean(shares_B, counted_B), _mean(1 / sizes_B.clamp(min=1).double(), counted_B)


@torch.no_grad()
def length_correlation(scores_B: Tensor, lengths_B: Tensor, outcomes_B: Tensor) -> Tensor:
    """Return the correlation of score and length among responses that are equally right, in [-1, 1].

    Pearson's correlation after subtracting, from both, the mean of the responses with the same outcome: right
    responses may be shorter than wrong ones, and a PRM that knows which are right is not biased because of that.
    NaN if nothing varies.

    Raises:
        ValueError: numbers of rows differ.
    """
    check_rows(scores_B.numel(), lengths_B=lengths_B, outcomes_B=outcomes_B)
    table = group_table(torch.unique(outcomes_B, return_inverse=True)[1])

    def centred(values_B: Tensor) -> Tensor:
        mean_P = table.gather(values_B.double()).sum(dim=1) / table.sizes
        return values_B.double() - table.spread(mean_P)

    left_B, right_B = centred(scores_B), centred(lengths_B)
    # Rounding leaves a constant column with deviations of 1e-16, whose correlation would be noise.
    varies = (left_B.abs().max() > 1e-9 * scores_B.double().abs().max()) & (right_B.abs().max() > 1e-9)
    correlation = (left_B * right_B).sum() / (left_B.square().sum() * right_B.square().sum()).sqrt()
    return torch.where(varies, correlation.clamp(-1, 1), torch.nan)


@torch.no_grad()
def best_is_wrong(scores_B: Tensor, labels_B: Tensor, group_ids_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return how often the response with the highest score of a group is wrong, and how often a random one would be.

    Both are means over the groups that have a response with the group's highest label and one with a lower label;
    wrong is a lower label. Equal highest scores count their shares.

    Raises:
        ValueError: numbers of rows differ.
    """
    check_rows(scores_B.numel(), labels_B=labels_B, group_ids_B=group_ids_B)
    table = group_table(group_ids_B)
    scores_PG = table.gather(scores_B.double()).masked_fill(~table.filled, -torch.inf)
    labels_PG = table.gather(labels_B.double()).masked_fill(~table.filled, -torch.inf)
    is_wrong_PG = table.filled & (labels_PG < labels_PG.max(dim=1, keepdim=True).values)
    is_best_PG = table.filled & (scores_PG == scores_PG.max(dim=1, keepdim=True).values)
    num_wrong_P, num_best_P = is_wrong_PG.sum(dim=1).double(), is_best_PG.sum(dim=1).clamp(min=1)
    counted_P = num_wrong_P > 0
    wrong_P = (is_wrong_PG & is_best_PG).sum(dim=1).double() / num_best_P
    return _mean(wrong_P, counted_P), _mean(num_wrong_P / table.sizes, counted_P)


@torch.no_grad()
def share_of_magnitude(rewards_BT: Tensor, chosen_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share of the chosen tokens in the magnitudes of the rewards, and in the tokens.

    Magnitudes are absolute values under the mask. The first is NaN if all rewards are 0.

    Raises:
        ValueError: shapes differ.
    """
    check_shapes(mask_BT.shape, rewards_BT=rewards_BT, chosen_BT=chosen_BT)
    sizes_BT = zero_padding(rewards_BT.abs().double(), mask_BT)
    chosen_BT = chosen_BT.bool() & mask_BT.bool()
    return (
        zero_padding(sizes_BT, chosen_BT).sum() / sizes_BT.sum(),
        chosen_BT.sum().double() / mask_BT.bool().sum(),
    )


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Return the mean of the counted values; NaN without one."""
    return values.masked_fill(~counted, 0.0).sum() / counted.sum()
