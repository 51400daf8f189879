"""Statistics over the responses that share a prompt.

A group is identified by its id, not by its position: length balancing and sharding shuffle rows, so nothing here
assumes that the rows of a group are adjacent, that ids are dense, or that groups have equal sizes.

Shapes: B responses, P groups, G slots of the largest group.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_prime.algorithm.checks import check_rows

PRIOR_OBSERVATIONS = 2.0
PRIOR_RANGE = (0.02, 0.98)


@dataclass(frozen=True, eq=False)
class GroupTable:
    """The batch regrouped as a dense [P, G] table.

    It is dense, instead of a scatter-add, so that sums do not depend on the order of atomic additions on a GPU.

    Attributes:
        rows: int64 [P, G], the batch row in each slot; 0 where the slot is empty.
        filled: bool [P, G], whether the slot holds a row.
        group_of_row: int64 [B], the group (row of the table) of each response.
        slot_of_row: int64 [B], the slot (column of the table) of each response.
    """

    rows: Tensor
    filled: Tensor
    group_of_row: Tensor
    slot_of_row: Tensor

    @property
    def sizes(self) -> Tensor:
        """The number of responses in each group, int64 [P]."""
        return self.filled.sum(dim=1)

    def gather(self, values_B: Tensor) -> Tensor:
        """Return values_B as [P, G], zero in empty slots."""
        check_rows(self.group_of_row.numel(), values_B=values_B)
        values_PG = values_B[self.rows]
        return torch.where(self.filled, values_PG, torch.zeros_like(values_PG))

    def scatter(self, values_PG: Tensor) -> Tensor:
        """Return the values of a [P, G] table by row, [B]: the inverse of `gather`."""
        return values_PG[self.group_of_row, self.slot_of_row]

    def spread(self, values_P: Tensor) -> Tensor:
        """Return the value of each row's group, [B]."""
        return values_P[self.group_of_row]


def group_table(group_ids_B: Tensor) -> GroupTable:
    """Build the table of groups from integer ids in any order.

    Raises:
        ValueError: the ids are not one-dimensional or not integers.
    """
    if group_ids_B.dim() != 1 or group_ids_B.is_floating_point() or group_ids_B.is_complex():
        raise ValueError(
            f"group_ids_B must be integers of shape [B], got {group_ids_B.dtype} {tuple(group_ids_B.shape)}"
        )
    _, group_B, sizes_P = torch.unique(group_ids_B, return_inverse=True, return_counts=True)
    num_groups = sizes_P.numel()
    largest = int(sizes_P.max()) if num_groups else 0
    # A stable sort by group gives each row its slot: its rank among the rows of its group.
    order_B = torch.argsort(group_B, stable=True)
    first_P = sizes_P.cumsum(dim=0) - sizes_P
    slot_B = torch.empty_like(group_B)
    slot_B[order_B] = torch.arange(group_B.numel(), device=group_B.device) - first_P[group_B[order_B]]
    rows_PG = group_B.new_zeros((num_groups, largest))
    rows_PG[group_B, slot_B] = torch.arange(group_B.numel(), device=group_B.device)
    filled_PG = torch.arange(largest, device=group_B.device) < sizes_P[:, None]
    return GroupTable(rows_PG, filled_PG, group_B, slot_B)


def _require_pairs(table: GroupTable, what: str) -> None:
    num_single = int((table.sizes < 2).sum())
    if num_single:
        raise ValueError(
            f"{what} needs at least two responses per prompt and {num_single} groups have one; "
            "raise group_size or use the reinforce estimator"
        )


def _as_input(values_B: Tensor, like_B: Tensor) -> Tensor:
    return values_B.to(torch.promote_types(like_B.dtype, torch.float32))


def group_sizes(group_ids_B: Tensor) -> Tensor:
    """Return the number of responses in the group of each row, int64 [B]."""
    table = group_table(group_ids_B)
    return table.spread(table.sizes)


def group_mean(values_B: Tensor, group_ids_B: Tensor) -> Tensor:
    """Return the mean of each row's group, the row included, [B].

    The sum is in float64, so that the mean of a constant group is the constant; the result has the input's type,
    float32 at least.
    """
    table = group_table(group_ids_B)
    mean_P = table.gather(values_B.double()).sum(dim=1) / table.sizes
    return _as_input(table.spread(mean_P), values_B)


def leave_one_out_mean(values_B: Tensor, group_ids_B: Tensor) -> Tensor:
    """Return the mean of the other rows of each row's group, [B]: 1/(G-1) * sum_{j != i} (Eq. 4).

    Raises:
        ValueError: a group has one row, so that there are no others.
    """
    table = group_table(group_ids_B)
    _require_pairs(table, "a leave-one-out baseline")
    values_PG = table.gather(values_B.double())
    others_PG = (values_PG.sum(dim=1, keepdim=True) - values_PG) / (table.sizes - 1)[:, None]
    return _as_input(table.scatter(others_PG), values_B)


def prior_logits_B(outcome_rewards_B: Tensor, group_ids_B: Tensor) -> Tensor:  # noqa: N802
    """Return the logit that each response is right as far as the other responses tell, [B].

    With n_i the other members of the group of response i, s_i the sum of their outcomes, and m_i the mean outcome of
    all other responses of the batch (1/2 if there are none),

        logit(clamp((s_i + 2 * m_i) / (n_i + 2), 0.02, 0.98)),

    the group's leave-one-out accuracy, shrunk to that of the batch by two pseudo-observations. The response's own
    outcome does not enter, so that it may serve as a baseline. Ours, after the intercept of logistic regression.
    """
    table = group_table(group_ids_B)
    outcomes_B = outcome_rewards_B.double()
    outcomes_PG = table.gather(outcomes_B)
    sum_of_others_B = table.scatter(outcomes_PG.sum(dim=1, keepdim=True) - outcomes_PG)
    num_others_B = table.spread(table.sizes) - 1
    num_rows = outcomes_B.numel()
    others_of_batch_B = outcomes_B.sum() - outcomes_B
    batch_B = others_of_batch_B / (num_rows - 1) if num_rows > 1 else torch.full_like(outcomes_B, 0.5)
    shrunk_B = (sum_of_others_B + PRIOR_OBSERVATIONS * batch_B) / (num_others_B + PRIOR_OBSERVATIONS)
    return _as_input(torch.logit(shrunk_B.clamp(*PRIOR_RANGE)), outcome_rewards_B)


def group_std(values_B: Tensor, group_ids_B: Tensor) -> Tensor:
    """Return the unbiased standard deviation of each row's group, [B].

    Raises:
        ValueError: a group has one row.
    """
    table = group_table(group_ids_B)
    _require_pairs(table, "a group standard deviation")
    values_PG = table.gather(values_B.double())
    mean_P1 = values_PG.sum(dim=1, keepdim=True) / table.sizes[:, None]
    square_PG = torch.where(table.filled, (values_PG - mean_P1).square(), 0.0)
    std_P = (square_PG.sum(dim=1) / (table.sizes - 1)).sqrt()
    return _as_input(table.spread(std_P), values_B)


def pair_accuracy(scores_B: Tensor, labels_B: Tensor, group_ids_B: Tensor) -> tuple[float, int]:
    """Return the fraction of the pairs within groups that the scores order as the labels do, and the number of pairs.

    Pairs have different labels and are pooled over groups; equal scores count one half. NaN without a pair.
    """
    table = group_table(group_ids_B)
    scores_PG, labels_PG = table.gather(scores_B.double()), table.gather(labels_B.double())
    score_gap_PGG = scores_PG[:, :, None] - scores_PG[:, None, :]
    is_pair_PGG = labels_PG[:, :, None] > labels_PG[:, None, :]
    is_pair_PGG &= table.filled[:, :, None] & table.filled[:, None, :]
    return float(share_positive(score_gap_PGG[is_pair_PGG])), int(is_pair_PGG.sum())


def share_positive(margins: Tensor) -> Tensor:
    """Return the share of positive numbers, a 0 counting one half; NaN for none."""
    return (margins.sign() / 2 + 0.5).mean()
