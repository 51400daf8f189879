"""The value function of a critic: every prefix's probability of a right outcome, trained by cross-entropy.

PPO (arXiv 1707.06347) trains a second network to predict the return of each state, and generalized advantage estimation
(arXiv 1506.02438, `advantage.estimator = "gae"`) compares what happens with its predictions. A state is a prompt with
the first t tokens of a response, the return is the outcome z, and

    v_t = sigmoid(l_t),    loss = mean_t [-z * log v_t - (1 - z) * log(1 - v_t)]

over the states before the scored tokens. l_t is the difference of the logits of two fixed tokens (`value_tokens`) at
the state, so that the head is the output layer that the model has: weights, layouts, checkpoints and conversion are
those of any PRM. It takes the place of the log-ratio q_t, and there is no reference. Unlike in most implementations of
PPO, the targets are outcomes instead of lambda returns, the loss is cross-entropy instead of a square (the probability
is the minimum of both), and values are not clipped.

Shapes: B responses, T response tokens (right padded), L = T + 1 lengths of a prefix.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from megatron_prime.algorithm.prm_rows import RowTargets, ScoredRows
from megatron_prime.algorithm.registry import Requirements
from megatron_prime.algorithm.tensor_ops import next_columns_BT, outcome_cross_entropy_B
from megatron_prime.config.tables.prm import PRMConfig


@dataclass(frozen=True)
class Objective:
    """The mean cross-entropy of the values of a response's prefixes with its outcome; `prm.beta` has no effect."""

    config: PRMConfig
    requires: ClassVar[Requirements] = Requirements(value_differences=True)

    def targets(self, rows: ScoredRows | None, labels_B: Tensor, group_ids_B: Tensor) -> RowTargets | None:
        """Return None: every response has its loss by itself."""
        return None

    def losses_B(self, rows: ScoredRows, labels_B: Tensor, targets: RowTargets | None) -> Tensor:  # noqa: N802
        """Return the mean cross-entropy of each response's prefixes; 0 without a scored token."""
        return outcome_cross_entropy_B(rows.log_ratio_BT, labels_B, rows.scored_mask_BT)

    def prefix_logits_BL(  # noqa: N802
        self, log_ratio_BT: Tensor, scored_mask_BT: Tensor, prior_logits_B: Tensor
    ) -> Tensor:
        """Return l of the first scored token at or after each column, and -inf where there is none.

        Behind the last scored token the value is 0 and not a prediction: the outcome itself takes its place, as the
        reward of the last token (`estimators.gae`). Differences of values are those of one state and the next, with the
        replies of an environment between them where these are not scored. The prior does not enter.
        """
        with_end_BL = torch.nn.functional.pad(log_ratio_BT, (0, 1), value=-torch.inf)
        columns_BL = torch.nn.functional.pad(
            next_columns_BT(scored_mask_BT), (0, 1), value=log_ratio_BT.shape[1]
        )
        return with_end_BL.gather(1, columns_BL)


def value_tokens(vocab_size: int) -> tuple[int, int]:
    """Return the two tokens whose logits a critic is read from: the last two of the vocabulary.

    They are reserved or rare in the vocabularies of language models, so that nothing has taught their logits to differ:
    by a few nats at most at the start, from where values learn within a few updates.
    """
    return vocab_size - 1, vocab_size - 2


def last_values_B(rows: ScoredRows) -> Tensor:  # noqa: N802
    """Return the logit of the value before the last scored token of each response, 0 where there is none."""
    num_columns = rows.scored_mask_BT.shape[1]
    columns_T = torch.arange(num_columns, device=rows.scored_mask_BT.device)
    latest_B = torch.where(rows.scored_mask_BT.bool(), columns_T, -1).max(dim=1).values
    return (rows.log_ratio_BT * (columns_T == latest_B[:, None])).sum(dim=1)
