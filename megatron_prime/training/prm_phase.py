"""The PRM's part of a step: when it is scored and when it is updated.

    after    score | update          rewards of the PRM before this step's update (one forward pass if it can be)
    before           update | score  rewards of the PRM that has seen this very batch
    reverse  score | update          the update uses the scores (dpo, best-of-N losses)
    none     score                   the PRM stays as it is

All rewards of a batch come from one PRM: with several minibatches, scores taken during the update would not.
"""

from dataclasses import dataclass

import torch

from megatron_prime.algorithm.implicit_reward import sequence_scores_B
from megatron_prime.algorithm.prm_loss import prm_metrics, prm_pair_targets
from megatron_prime.config.tables.prm import PRMConfig
from megatron_prime.models.forward import Scores, Sequences
from megatron_prime.training.losses import PRMRowLoss
from megatron_prime.training.minibatches import minibatches
from megatron_prime.training.trainable import Scorer, Trainable
from megatron_prime.types import RolloutBatch


@dataclass(frozen=True)
class PRMResult:
    """What the phase hands on."""

    logprobs_BT: torch.Tensor
    """The PRM's log-probs that the process rewards are made of."""
    metrics: dict[str, float]


class PRMPhase:
    """Scores and updates the PRM on a batch.

    Args:
        prm: a Trainable, or a Scorer when update_order is none.
        config: loss, beta, update order, minibatches.
        seed: of the minibatch order.
    """

    def __init__(self, prm: Scorer, config: PRMConfig, seed: int) -> None:
        assert isinstance(prm, Trainable) == (config.update_order != "none"), (
            "only a frozen PRM stays as it is"
        )
        self.prm = prm
        self._config = config
        self._seed = seed

    def run(
        self, batch: RolloutBatch, sequences: Sequences, ref_logprobs_BT: torch.Tensor, step_index: int
    ) -> PRMResult:
        """One step's phase. Collective over all ranks."""
        with self.prm.resident():
            return self._run(batch, sequences, ref_logprobs_BT, step_index)

    def _run(
        self, batch: RolloutBatch, sequences: Sequences, ref_logprobs_BT: torch.Tensor, step_index: int
    ) -> PRMResult:
        config = self._config
        single_forward = (
            config.update_order == "after"
            and config.loss == "ce"
            and config.num_minibatches == config.num_epochs == 1
        )
        needs_scores_first = config.update_order != "before" or config.loss != "ce"
        scores: Scores | None = None
        if needs_scores_first and not single_forward:
            scores = self.prm.score(sequences)
        metrics: dict[str, float] = {}
        if isinstance(self.prm, Trainable):
            first_scores, metrics = self._update(
                self.prm, batch, sequences, ref_logprobs_BT, scores, step_index
            )
            if single_forward:
                scores = first_scores or self.prm.score(sequences)
            elif config.update_order == "before":
                scores = self.prm.score(sequences)
        assert scores is not None
        scores_B = sequence_scores_B(scores.logprobs_BT, ref_logprobs_BT, batch.response_mask_BT, config.beta)
        metrics |= prm_metrics(scores_B, batch.outcome_rewards_B, batch.group_ids_B)
        return PRMResult(scores.logprobs_BT, metrics)

    def _update(
        self,
        prm: Trainable,
        batch: RolloutBatch,
        sequences: Sequences,
        ref_logprobs_BT: torch.Tensor,
        scores: Scores | None,
        step_index: int,
    ) -> tuple[Scores | None, dict[str, float]]:
        """All optimizer steps; returns the first one's scores and the mean metrics.

        A minibatch without a row to train on has no update; the scores are None when none has.
        """
        config = self._config
        other_scores_B = pair_weights_B = None
        if config.loss != "ce":
            assert scores is not None
            scores_B = sequence_scores_B(
                scores.logprobs_BT, ref_logprobs_BT, batch.response_mask_BT, config.beta
            )
            other_scores_B, pair_weights_B = prm_pair_targets(
                scores_B, batch.outcome_rewards_B, batch.group_ids_B, config.loss
            )
        first_scores: Scores | None = None
        totals: dict[str, float] = {}
        lr = prm.lr
        all_rows = minibatches(
            batch.num_rows, config.num_minibatches, config.num_epochs, self._seed, step_index
        )
        rows_of_updates = [rows for rows in all_rows if batch.trained_rows(rows)]
        num_updates = len(rows_of_updates)
        for rows in rows_of_updates:
            loss = PRMRowLoss(
                kind=config.loss,
                beta=config.beta,
                num_rows=len(batch.trained_rows(rows)),
                ref_logprobs_BT=ref_logprobs_BT,
                response_mask_BT=batch.response_mask_BT,
                outcome_rewards_B=batch.outcome_rewards_B,
                other_scores_B=other_scores_B,
                pair_weights_B=pair_weights_B,
                is_trained_B=batch.is_trained_B,
            )
            minibatch_scores, metrics = prm.update(sequences, rows, loss)
            first_scores = first_scores or minibatch_scores
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + value / num_updates
        prm.advance_schedule()
        return first_scores, totals | {"lr": lr}
