"""Training of the PRM on saved responses, without a policy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from megatron_prime.algorithm.implicit_reward import sequence_scores_B
from megatron_prime.algorithm.prm_loss import prm_metrics
from megatron_prime.config.tables.prm import PRMConfig
from megatron_prime.data.mixing import ResumableStream
from megatron_prime.data.responses.table import Group
from megatron_prime.models.forward import Sequences
from megatron_prime.observability.metrics import Metrics
from megatron_prime.rollout.collector import StepSegmenter, step_ids_of_response
from megatron_prime.training.prm_phase import PRMPhase
from megatron_prime.training.trainable import Scorer
from megatron_prime.types import RolloutBatch


def batch_of(groups: Sequence[Group], segmenter: StepSegmenter | None = None) -> RolloutBatch:
    """Return groups of saved responses as a batch, with the steps of the responses if there is a segmenter."""
    rollouts = [rollout for group in groups for rollout in group]
    group_ids = [number for number, group in enumerate(groups) for _ in group]
    step_ids = None
    if segmenter is not None:
        step_ids = [step_ids_of_response(segmenter, each.response_ids, each.turns) for each in rollouts]
    return RolloutBatch.from_rollouts(rollouts, group_ids, step_ids)


def sequences_of(batch: RolloutBatch) -> Sequences:
    """Return prompt and response tokens of each row."""
    return [(rollout.prompt.token_ids, rollout.response_ids) for rollout in batch.rollouts]


class OfflinePRMTrainer:
    """Updates the PRM on groups of saved responses, one update per step.

    The metrics `prm/...` of a step are those before its update; in the first epoch its responses are unseen.

    Args:
        phase: the PRM with its objective.
        reference: of the log-ratio.
        stream: groups of responses, equal on every rank.
        prompts_per_step: groups of a step.
        segmenter: splits responses into steps, for an objective that needs them.
        step_index: number of steps already done (in a resumed run).
    """

    def __init__(
        self,
        phase: PRMPhase,
        reference: Scorer,
        stream: ResumableStream[Group],
        prompts_per_step: int,
        segmenter: StepSegmenter | None = None,
        step_index: int = 0,
    ) -> None:
        self._phase = phase
        self._reference = reference
        self._stream = stream
        self._prompts_per_step = prompts_per_step
        self._segmenter = segmenter
        self.step_index = step_index

    def step(self) -> Metrics:
        """Take one optimizer step and return its metrics. Collective over all ranks."""
        metrics = Metrics()
        with metrics.timed("step"):
            batch = batch_of(self._stream.next(self._prompts_per_step), self._segmenter)
            batch = batch.to(self._reference.topology.platform.device)
            sequences = sequences_of(batch)
            with metrics.timed("logprobs"):
                ref_logprobs_BT = self._reference.score(sequences).logprobs_BT
            with metrics.timed("prm"):
                result = self._phase.run(batch, sequences, ref_logprobs_BT, self.step_index)
            metrics.add("prm", result.metrics)
        self.step_index += 1
        return metrics


@dataclass(frozen=True)
class HeldOutPRM:
    """The quality of the PRM on responses that it is not trained on."""

    values: dict[str, float]
    """See `prm_metrics`."""
    num_responses: int

    def metrics(self) -> dict[str, float]:
        """Return the values to log, by name."""
        return {f"prm_{name}": value for name, value in self.values.items()}

    def summary(self) -> str:
        """Return the result in one line."""
        values = self.values
        pairs = f"{values['pair_accuracy']:.3f} of {values['num_pairs']:.0f} pairs"
        if math.isnan(values["pair_accuracy"]):
            pairs = "no pairs of a right and a wrong response to one prompt"
        return f"{pairs}, cross-entropy {values['ce']:.4f} nats ({self.num_responses} responses)"


class HeldOutResponses:
    """Measures the PRM on held-out responses; the reference scores them once.

    Args:
        prm: the model that is trained.
        reference: of the log-ratio.
        config: beta, and the tokens that are scored.
        groups: held-out groups, at least one.
        groups_at_once: groups that are scored together.
    """

    def __init__(
        self, prm: Scorer, reference: Scorer, config: PRMConfig, groups: Sequence[Group], groups_at_once: int
    ) -> None:
        self._prm = prm
        self._reference = reference
        self._config = config
        self._groups = groups
        self._groups_at_once = groups_at_once

    def measure(self) -> HeldOutPRM:
        """Score all responses. Collective over all ranks."""
        scores, labels, group_ids = [], [], []
        for batch, ref_logprobs_BT in zip(self._batches(), self._ref_logprobs, strict=True):
            logprobs_BT = self._prm.score(sequences_of(batch)).logprobs_BT.cpu()
            scored_BT = batch.scored_mask_BT(self._config.scored_tokens)
            scores.append(sequence_scores_B(logprobs_BT, ref_logprobs_BT, scored_BT, self._config.beta))
            labels.append(batch.outcome_rewards_B)
            group_ids.append(batch.group_ids_B + self._groups_at_once * len(group_ids))
        values = prm_metrics(torch.cat(scores), torch.cat(labels), torch.cat(group_ids))
        return HeldOutPRM(values, sum(map(len, labels)))

    @cached_property
    def _ref_logprobs(self) -> list[torch.Tensor]:
        return [self._reference.score(sequences_of(batch)).logprobs_BT.cpu() for batch in self._batches()]

    def _batches(self) -> list[RolloutBatch]:
        size = self._groups_at_once
        starts = range(0, len(self._groups), size)
        return [
            batch_of([self._groups[row] for row in range(start, min(start + size, len(self._groups)))])
            for start in starts
        ]
