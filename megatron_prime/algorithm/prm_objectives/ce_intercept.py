"""Cross-entropy with a class prior, which the PRM then need not explain.

The score of a right response has to reach the accuracy of its prompt as a logit before it can tell one token from
another. Under plain cross-entropy the tokens carry this offset, and long responses more of it. Here the prior carries
it, and the log-ratio learns what distinguishes a response from the others to its prompt. Ours, after the intercept of
logistic regression; the paper's form is `ce`.

Shapes: B responses.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from megatron_prime.algorithm.groups import prior_logits_B
from megatron_prime.algorithm.prm_rows import PriorTargets, RowTargets, ScoredRows, SummedPrefixes
from megatron_prime.algorithm.registry import Requirements


@dataclass(frozen=True)
class Objective(SummedPrefixes):
    """-label * log sigmoid(b + score) - (1 - label) * log sigmoid(-b - score), b of `groups.prior_logits_B`."""

    requires: ClassVar[Requirements] = Requirements()

    def targets(self, rows: ScoredRows | None, labels_B: Tensor, group_ids_B: Tensor) -> RowTargets | None:
        """Return the prior of each response, from the outcomes of the others."""
        return PriorTargets(prior_logits_B(labels_B, group_ids_B))

    def losses_B(self, rows: ScoredRows, labels_B: Tensor, targets: RowTargets | None) -> Tensor:  # noqa: N802
        """Return the cross-entropies.

        Raises:
            ValueError: there are no targets.
        """
        scores_B = rows.scores_B
        logits_B = PriorTargets.logits_of(targets).to(scores_B.dtype) + scores_B
        return binary_cross_entropy_with_logits(logits_B, labels_B.to(scores_B.dtype), reduction="none")
