"""IPVRM (arXiv 2604.13197): cross-entropy of the outcome with the length-normalized value of every prefix.

The value of a prefix of t scored tokens is

    v_t = sigmoid(beta / t * sum_{s <= t} q_s),

and each is trained to be the probability that the response ends up right (Eq. 9 of the paper), so that differences of
values, `advantage.process_credit = "td"`, are what was trained. Under `ce` only the whole sum is.

As the value is a mean and not a sum, beta is larger: 10 in the authors' code. Two differences: their loss has a margin
between the two labels (5 there, at beta 10), which is left out because values would be no probabilities with it; and
they average over all prefixes of a batch, where here each response is an average of its prefixes, and has the weight
that it has in every other objective.

Shapes: B responses, T response tokens (right padded), L = T + 1 lengths of a prefix.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from megatron_prime.algorithm.prm_rows import RowTargets, ScoredRows
from megatron_prime.algorithm.registry import Requirements
from megatron_prime.algorithm.tensor_ops import outcome_cross_entropy_B
from megatron_prime.config.tables.prm import PRMConfig


@dataclass(frozen=True)
class Objective:
    """mean_t [-label * log v_t - (1 - label) * log(1 - v_t)] over the scored tokens of a response."""

    config: PRMConfig
    requires: ClassVar[Requirements] = Requirements()

    def targets(self, rows: ScoredRows | None, labels_B: Tensor, group_ids_B: Tensor) -> RowTargets | None:
        """Return None: every response has its loss by itself."""
        return None

    def losses_B(self, rows: ScoredRows, labels_B: Tensor, targets: RowTargets | None) -> Tensor:  # noqa: N802
        """Return the mean cross-entropy of each response's prefixes; 0 without a scored token."""
        logits_BT = _logits_BT(rows.log_ratio_BT, rows.scored_mask_BT, self.config.beta)
        return outcome_cross_entropy_B(logits_BT, labels_B, rows.scored_mask_BT)

    def prefix_logits_BL(  # noqa: N802
        self, log_ratio_BT: Tensor, scored_mask_BT: Tensor, prior_logits_B: Tensor
    ) -> Tensor:
        """Return the logit of v_t, 0 for the empty prefix; see `prm_loss.PRMObjective`.

        The prior does not enter, because the loss has none: the first tokens learn it.
        """
        return torch.nn.functional.pad(_logits_BT(log_ratio_BT, scored_mask_BT, self.config.beta), (1, 0))


def _logits_BT(log_ratio_BT: Tensor, scored_mask_BT: Tensor, beta: float) -> Tensor:  # noqa: N802
    """Return beta times the mean of the log-ratios so far."""
    lengths_BT = scored_mask_BT.cumsum(dim=1).clamp(min=1)
    return beta * log_ratio_BT.cumsum(dim=1) / lengths_BT
