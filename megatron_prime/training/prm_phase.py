"""The PRM's part of a training step: when it scores the batch and when it is updated.

    after    score | update          rewards of the PRM before this step's update (one forward pass if it can be)
    before           update | score  rewards of the PRM after its update on this very batch
    reverse  score | update          the update uses the scores (dpo, best-of-N losses)
    none     score                   the PRM stays as it is

All rewards of a batch come from one PRM: with several minibatches, scores taken during the update would not.

What the PRM knows is measured on responses that it has not learned from, in every order. In `before`, the first
update of each minibatch gives these scores, so that they cost no forward pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from megatron_prime.algorithm.prm_loss import prm_metrics, prm_targets
from megatron_prime.algorithm.prm_objectives.value import last_values_B
from megatron_prime.algorithm.prm_rows import ScoredRows
from megatron_prime.algorithm.registry import PRM_OBJECTIVES, Requirements
from megatron_prime.config.tables.prm import PRMConfig
from megatron_prime.models.forward import Scores, Sequences
from megatron_prime.training.losses import PRMRowLoss
from megatron_prime.training.minibatches import update_on_batch
from megatron_prime.training.trainable import Scorer, Trainable
from megatron_prime.types import RolloutBatch


@dataclass(frozen=True)
class PRMResult:
    """The result of one phase."""

    logprobs_BT: torch.Tensor
    """Log-probs of the PRM that the process rewards are made of."""
    metrics: dict[str, float]


def policy_as_prm(
    batch: RolloutBatch, old_logprobs_BT: torch.Tensor, ref_logprobs_BT: torch.Tensor, config: PRMConfig
) -> PRMResult:
    """Return the result of a step without a PRM, in which the policy before its update takes its place.

    Where the reference is the policy that a run started from, the log-ratio says which tokens have become likelier by
    training on outcomes: SPRO (arXiv 2507.01551) and prm.source = "policy".
    """
    scored_BT = batch.scored_mask_BT(config.scored_tokens)
    rows = ScoredRows.of(old_logprobs_BT, ref_logprobs_BT, scored_BT, config.beta)
    metrics = prm_metrics(rows.scores_B, batch.outcome_rewards_B, batch.group_ids_B)
    return PRMResult(old_logprobs_BT, metrics | _unseen(metrics))


class UnseenScores:
    """Collects the log-probs of each response from before the first update on it.

    Args:
        num_rows: responses of the batch.
    """

    def __init__(self, num_rows: int) -> None:
        self.logprobs_BT: torch.Tensor | None = None
        """0 on the rows that no update was taken on; None before the first update."""
        self._minibatch_of = [-1] * num_rows
        self._num_minibatches = 0

    def note(self, rows: Sequence[int], scores: Scores) -> None:
        """Take the scores of an update, unless they are of a later epoch."""
        if self._minibatch_of[rows[0]] >= 0:
            return
        for row in rows:
            self._minibatch_of[row] = self._num_minibatches
        self._num_minibatches += 1
        if self.logprobs_BT is None:
            self.logprobs_BT = scores.logprobs_BT
        else:
            self.logprobs_BT += scores.logprobs_BT

    def metrics(self, scores_B: torch.Tensor, batch: RolloutBatch) -> dict[str, float]:
        """Return the PRM's quality on these rows; pairs are of one minibatch, so that one PRM has scored both."""
        labels_B, ids_B = batch.outcome_rewards_B, batch.group_ids_B
        if self._num_minibatches > 1:
            minibatch_B = torch.tensor(self._minibatch_of).to(ids_B.device)
            ids_B = ids_B * self._num_minibatches + minibatch_B
        kept = [row for row, minibatch in enumerate(self._minibatch_of) if minibatch >= 0]
        if len(kept) < batch.num_rows:
            scores_B, labels_B, ids_B = scores_B[kept], labels_B[kept], ids_B[kept]
        return prm_metrics(scores_B, labels_B, ids_B)


class PRMPhase:
    """Scores and updates the PRM on a batch.

    Args:
        prm: a Trainable, or a Scorer when update_order is none.
        config: loss, beta, update order, minibatches.
        seed: seed of the order of the minibatches.
    """

    def __init__(self, prm: Scorer, config: PRMConfig, seed: int) -> None:
        assert isinstance(prm, Trainable) == (config.update_order != "none"), (
            "only a PRM that is never updated may be a plain Scorer"
        )
        self.prm = prm
        self._config = config
        self._seed = seed
        self._requires: Requirements = PRM_OBJECTIVES.load(config.loss).requires

    def run(
        self, batch: RolloutBatch, sequences: Sequences, ref_logprobs_BT: torch.Tensor, step_index: int
    ) -> PRMResult:
        """Score and update as configured, in the order configured. Collective over all ranks.

        The reference of a critic, whose scores are logits already, is 0 everywhere.
        """
        with self.prm.resident():
            return self._run(batch, sequences, ref_logprobs_BT, step_index)

    def _run(
        self, batch: RolloutBatch, sequences: Sequences, ref_logprobs_BT: torch.Tensor, step_index: int
    ) -> PRMResult:
        config = self._config
        # One update on the whole batch runs the same forward pass as scoring it: its log-probs are the scores.
        single_forward = (
            config.update_order == "after"
            and not self._requires.prior_scores
            and config.num_minibatches == config.num_epochs == 1
        )
        needs_scores_first = config.update_order != "before" or self._requires.prior_scores
        scores: Scores | None = None
        unseen = UnseenScores(batch.num_rows)
        if needs_scores_first and not single_forward:
            scores = self.prm.score(sequences)
        metrics: dict[str, float] = {}
        if isinstance(self.prm, Trainable):
            first_scores, metrics = self._update(
                self.prm, batch, sequences, ref_logprobs_BT, scores, step_index, unseen, single_forward
            )
            if single_forward:
                # Without a row to train on there was no update, hence no forward pass.
                scores = first_scores or self.prm.score(sequences)
            elif config.update_order == "before":
                scores = self.prm.score(sequences)
        assert scores is not None
        scores_B = self._scores_B(scores.logprobs_BT, ref_logprobs_BT, batch)
        quality = prm_metrics(scores_B, batch.outcome_rewards_B, batch.group_ids_B)
        if config.update_order != "before":
            metrics |= _unseen(quality)
        elif unseen.logprobs_BT is not None:
            unseen_B = self._scores_B(unseen.logprobs_BT, ref_logprobs_BT, batch)
            metrics |= _unseen(unseen.metrics(unseen_B, batch))
        return PRMResult(scores.logprobs_BT, metrics | quality)

    def _update(
        self,
        prm: Trainable,
        batch: RolloutBatch,
        sequences: Sequences,
        ref_logprobs_BT: torch.Tensor,
        scores: Scores | None,
        step_index: int,
        unseen: "UnseenScores",
        keeps_scores: bool,
    ) -> tuple[Scores | None, dict[str, float]]:
        """Take all optimizer steps; return the scores behind the first one and the mean metrics."""
        prior_rows = None
        if self._requires.prior_scores:
            assert scores is not None
            prior_rows = self._rows(scores.logprobs_BT, ref_logprobs_BT, batch)
        labels_B = batch.outcome_rewards_B
        # The labels are checked by each minibatch's loss.
        targets = prm_targets(prior_rows, labels_B, batch.group_ids_B, self._config, are_labels_checked=True)

        def make_loss(rows: Sequence[int]) -> PRMRowLoss:
            return PRMRowLoss(
                config=self._config,
                num_rows=len(batch.trained_rows(rows)),
                ref_logprobs_BT=ref_logprobs_BT,
                scored_mask_BT=batch.scored_mask_BT(self._config.scored_tokens),
                outcome_rewards_B=labels_B,
                unit_ids_BT=self._unit_ids_BT(batch),
                targets=targets,
                is_trained_B=batch.is_trained_B,
            )

        observe = unseen.note if self._config.update_order == "before" else None
        key = (self._seed, step_index)
        return update_on_batch(
            prm, batch, sequences, self._config, make_loss, key, observe=observe, keeps_scores=keeps_scores
        )

    def _rows(
        self, prm_logprobs_BT: torch.Tensor, ref_logprobs_BT: torch.Tensor, batch: RolloutBatch
    ) -> ScoredRows:
        scored_BT = batch.scored_mask_BT(self._config.scored_tokens)
        unit_ids_BT = self._unit_ids_BT(batch)
        return ScoredRows.of(prm_logprobs_BT, ref_logprobs_BT, scored_BT, self._config.beta, unit_ids_BT)

    def _scores_B(  # noqa: N802
        self, prm_logprobs_BT: torch.Tensor, ref_logprobs_BT: torch.Tensor, batch: RolloutBatch
    ) -> torch.Tensor:
        """Return the logit that each response is right, of a critic before its last scored token."""
        rows = self._rows(prm_logprobs_BT, ref_logprobs_BT, batch)
        return last_values_B(rows) if self._config.is_critic else rows.scores_B

    def _unit_ids_BT(self, batch: RolloutBatch) -> torch.Tensor | None:  # noqa: N802
        return batch.unit_ids_BT(self._config.granularity) if self._requires.units else None


def _unseen(quality: Mapping[str, float]) -> dict[str, float]:
    """Return the part of the PRM's quality that is measured before the update, by the names of its metrics."""
    return {f"unseen_{name}": quality[name] for name in ("ce", "pair_accuracy")}
