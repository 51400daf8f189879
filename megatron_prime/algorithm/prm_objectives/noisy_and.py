"""Noisy-AND (experimental, ours): a response is right if all its tokens are, up to errors of the verifier.

A sum lets good tokens make up for a wrong one, which a chain of reasoning does not. Here token t succeeds with
probability sigmoid(s_i + beta * q_t), all of them have to, and the verifier is wrong with probability e = 0.01:

    P_i = e + (1 - 2e) * prod_t sigmoid(s_i + beta * q_t).

s_i is such that P_i is the class prior of response i (`groups.prior_logits_B`) where the PRM equals its reference: all
tokens are then equally suspect. The gradient of a wrong response goes to the tokens that are already suspected, and
that of a right one to all that were. As token logits start at s_i, about the logarithm of the response's length, and
have to fall below 0, `prm.beta` should be near 1.

Measured on a toy task (the study behind docs/theory.md): better at finding wrong steps than cross-entropy, but no
better training.

Shapes: B responses, T response tokens (right padded), L = T + 1 lengths of a prefix.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from megatron_prime.algorithm.groups import prior_logits_B
from megatron_prime.algorithm.prm_rows import PriorTargets, RowTargets, ScoredRows
from megatron_prime.algorithm.registry import Requirements
from megatron_prime.algorithm.tensor_ops import zero_padding
from megatron_prime.config.tables.prm import PRMConfig

VERIFIER_ERROR = 0.01
"""Half the least class prior, so that every prior is the value of some s. Keeps both logarithms of the loss finite."""


@dataclass(frozen=True)
class Objective:
    """-label * log P - (1 - label) * log(1 - P), P the noisy AND of the token's successes."""

    config: PRMConfig
    requires: ClassVar[Requirements] = Requirements()

    def targets(self, rows: ScoredRows | None, labels_B: Tensor, group_ids_B: Tensor) -> RowTargets | None:
        """Return the prior of each response, from the outcomes of the others."""
        return PriorTargets(prior_logits_B(labels_B, group_ids_B))

    def losses_B(self, rows: ScoredRows, labels_B: Tensor, targets: RowTargets | None) -> Tensor:  # noqa: N802
        """Return the cross-entropies.

        Raises:
            ValueError: there are no targets.
        """
        prior_B = PriorTargets.logits_of(targets)
        all_right_BL = self._log_all_right_BL(rows.log_ratio_BT, rows.scored_mask_BT, prior_B)
        right_B, wrong_B = _log_probabilities(all_right_BL[:, -1])
        labels_B = labels_B.to(right_B.dtype)
        return -(labels_B * right_B + (1 - labels_B) * wrong_B)

    def prefix_logits_BL(  # noqa: N802
        self, log_ratio_BT: Tensor, scored_mask_BT: Tensor, prior_logits_B: Tensor
    ) -> Tensor:
        """Return the logit of P with q = 0 behind the prefix: the tokens to come succeed as often as the reference's.

        The prior enters by s; see `prm_loss.PRMObjective`.
        """
        right_BL, wrong_BL = _log_probabilities(
            self._log_all_right_BL(log_ratio_BT, scored_mask_BT, prior_logits_B)
        )
        return right_BL - wrong_BL

    def _log_all_right_BL(  # noqa: N802
        self, log_ratio_BT: Tensor, scored_mask_BT: Tensor, prior_logits_B: Tensor
    ) -> Tensor:
        """Return the log-probability that all tokens succeed, given the first t, t = 0..T."""
        dtype = log_ratio_BT.dtype
        noise = VERIFIER_ERROR
        prior_B = torch.sigmoid(prior_logits_B.double()).clamp(2 * noise, 1 - 2 * noise)
        all_right_B = torch.log((prior_B - noise) / (1 - 2 * noise))
        # In float64: a long response has a success close to 1 per token.
        each_right_B = all_right_B / scored_mask_BT.sum(dim=1).clamp(min=1)
        logits_B1 = (each_right_B - torch.log(-torch.expm1(each_right_B)))[:, None].to(dtype)
        gains_BT = logsigmoid(logits_B1 + self.config.beta * log_ratio_BT) - logsigmoid(logits_B1)
        summed_BT = zero_padding(gains_BT, scored_mask_BT).cumsum(dim=1)
        return all_right_B[:, None].to(dtype) + torch.nn.functional.pad(summed_BT, (1, 0))


def _log_probabilities(log_all_right: Tensor) -> tuple[Tensor, Tensor]:
    """Return log P and log(1 - P) of the log-probability that all tokens succeed."""
    # Rounding may leave a sum of logarithms slightly above 0.
    right = VERIFIER_ERROR + (1 - 2 * VERIFIER_ERROR) * log_all_right.clamp(max=0.0).exp()
    return right.log(), torch.log1p(-right)
