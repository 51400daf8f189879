"""The rows that a PRM objective sees, what it may keep of the whole batch, and the values that it gives to prefixes.

Shapes: B responses, T response tokens (right padded), L = T + 1 lengths of a prefix, from 0 to T.
"""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from megatron_prime.algorithm.checks import check_shapes
from megatron_prime.algorithm.implicit_reward import log_ratio_BT
from megatron_prime.config.tables.prm import PRMConfig


@dataclass(frozen=True, eq=False)
class ScoredRows:
    """Some rows of a batch as the PRM scores them: all of the batch, or those of a microbatch."""

    log_ratio_BT: Tensor
    """q_t = log pi_phi(y_t | y_<t) - log pi_ref(y_t | y_<t) in nats, 0 outside the scored tokens."""
    scored_mask_BT: Tensor
    """bool; the tokens that the score sums over. It may have holes, the replies of an environment."""
    beta: float
    """`prm.beta`, the scale of the log-ratio."""
    unit_ids_BT: Tensor | None = None
    """int, the step or turn of each token, nondecreasing along T. None unless the objective requires units."""

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; it must be positive (the paper's is 0.05)")
        check_shapes(self.scored_mask_BT.shape, log_ratio_BT=self.log_ratio_BT, unit_ids_BT=self.unit_ids_BT)

    @classmethod
    def of(
        cls,
        prm_logprobs_BT: Tensor,
        ref_logprobs_BT: Tensor,
        scored_mask_BT: Tensor,
        beta: float,
        unit_ids_BT: Tensor | None = None,
    ) -> Self:
        """Return the rows of these log-probs, differentiable in the PRM's alone.

        Raises:
            ValueError: beta is not positive, or shapes differ.
        """
        q_BT = log_ratio_BT(prm_logprobs_BT, ref_logprobs_BT, scored_mask_BT)
        return cls(q_BT, scored_mask_BT, beta, unit_ids_BT)

    @property
    def num_rows(self) -> int:
        """Number of rows, B."""
        return self.log_ratio_BT.shape[0]

    @property
    def scores_B(self) -> Tensor:  # noqa: N802
        """Scores beta * sum_t q_t, the logits that the responses are correct."""
        return self.beta * self.log_ratio_BT.sum(dim=1)


@dataclass(frozen=True, eq=False)
class RowTargets:
    """Base of an objective's targets: a dataclass of tensors whose first dimension is the rows of the batch.

    Targets are computed once on whole groups before the update, and are constants of the losses.
    """

    def rows(self, rows_b: Tensor) -> Self:
        """Return the targets of some rows of the batch."""
        return replace(self, **{each.name: getattr(self, each.name)[rows_b] for each in fields(self)})

    def check_rows(self, num_rows: int) -> None:
        """Raise ValueError unless each tensor has this number of rows."""
        for each in fields(self):
            tensor = getattr(self, each.name)
            check_shapes(torch.Size([num_rows, *tensor.shape[1:]]), **{each.name: tensor})


@dataclass(frozen=True, eq=False)
class PriorTargets(RowTargets):
    """The targets of the objectives with a class prior."""

    logits_B: Tensor
    """`groups.prior_logits_B` of the whole batch."""

    @classmethod
    def logits_of(cls, targets: RowTargets | None) -> Tensor:
        """Return the prior logits, [B].

        Raises:
            ValueError: there are no such targets.
        """
        if not isinstance(targets, cls):
            raise ValueError("this PRM objective needs targets: pass those of prm_targets on whole groups")
        return targets.logits_B.detach()


@dataclass(frozen=True)
class SummedPrefixes:
    """Base of the objectives that take a prefix for what its own sum says, as they take a response."""

    config: PRMConfig

    def prefix_logits_BL(  # noqa: N802
        self, log_ratio_BT: Tensor, scored_mask_BT: Tensor, prior_logits_B: Tensor
    ) -> Tensor:
        """Return b + beta * sum_{s <= t} q_s for t = 0..T, [B, T + 1]; see `prm_loss.PRMObjective`."""
        summed_BL = torch.nn.functional.pad(self.config.beta * log_ratio_BT.cumsum(dim=1), (1, 0))
        return prior_logits_B[:, None].to(summed_BL.dtype) + summed_BL
