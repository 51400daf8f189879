"""The training loop: Algorithm 1 of the paper, one step after another.

sync -> batch (rollout, verify, filter) -> old and reference log-probs -> PRM -> advantages -> policy

With rollout.max_staleness of 1 or more the batch may be there already, and what comes next is sampled from here on.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from megatron_prime.algorithm.advantage import advantage_parts, joined_parts, process_share
from megatron_prime.algorithm.correction import correction_metrics
from megatron_prime.algorithm.process_credit import CreditedRewards
from megatron_prime.config.run import PrimeConfig
from megatron_prime.models.forward import Routing, Scores, Sequences
from megatron_prime.observability.activity import StepActivity
from megatron_prime.observability.metrics import Metrics, phase_fractions, process_memory
from megatron_prime.rollout.collector import NoBatch
from megatron_prime.rollout.engine import NO_WEIGHTS, Engine
from megatron_prime.rollout.schedules.batches import BatchSource
from megatron_prime.rollout.weight_sync import WeightSync
from megatron_prime.training.health.credit import credit_metrics
from megatron_prime.training.health.format_tokens import FormatTokens
from megatron_prime.training.health.mismatch import Mismatch
from megatron_prime.training.losses import PolicyRowLoss, minibatch_weights_BT
from megatron_prime.training.minibatches import update_on_batch
from megatron_prime.training.phase_memory import PhaseMemory, free_memory_for_servers, release_after
from megatron_prime.training.prm_phase import PRMPhase, policy_as_prm
from megatron_prime.training.process_rewards import ProcessRewards
from megatron_prime.training.trainable import Scorer, Trainable
from megatron_prime.training.turn_metrics import turn_metrics
from megatron_prime.types import RolloutBatch


@dataclass(frozen=True)
class TrainedBatch:
    """A batch, and what a step computed of it before the policy's update."""

    batch: RolloutBatch
    old: Scores
    """Scores of the policy."""
    ref_logprobs_BT: torch.Tensor | None
    """None without a reference."""
    prm_logprobs_BT: torch.Tensor | None
    """Log-probs of the PRM that gave the process rewards; None without one."""
    process_rewards_BT: torch.Tensor | None
    """None without a PRM."""
    advantages_BT: torch.Tensor


BatchObserver = Callable[[int, TrainedBatch], None]
"""Gets the number of each step that trained, counted from 1, and its batch.

Not collective: an observer may be on one rank alone. It must not wait for the device: what it copies from there will
have arrived when the step returns, because the metrics are read after the observers were called.
"""


@dataclass(frozen=True)
class TrainerContext:
    """The collaborators of a trainer, built once by the command line."""

    engine: Engine
    """The engine that samples the batches; releases its memory after the sampling of each step."""
    batches: BatchSource
    policy: Trainable
    prm_phase: PRMPhase | None
    """None without a PRM: process rewards are the policy's own (prm.source), or there are none."""
    reference: Scorer | None
    """None where no reference is needed, or where the policy before its update is the reference."""
    weight_sync: WeightSync
    warn: Callable[[str], None] = lambda _: None
    """Receives a warning in one line."""
    observers: Sequence[BatchObserver] = ()
    format_tokens: FormatTokens | None = None
    """Knows the tokens that only format, for metrics of process rewards; None leaves these metrics out."""


class Trainer:
    """Runs steps of Algorithm 1.

    Args:
        config: the run's configuration.
        context: see TrainerContext.
        step_index: number of steps already done (in a resumed run).
    """

    def __init__(self, config: PrimeConfig, context: TrainerContext, step_index: int = 0) -> None:
        self.config = config
        self.step_index = step_index
        self._context = context
        roles: dict[str, Scorer | None] = {
            "policy": context.policy,
            "prm": context.prm_phase and context.prm_phase.prm,
            "reference": context.reference,
        }
        self._memory = PhaseMemory(
            {name: role.residency for name, role in roles.items() if role is not None},
            context.policy.topology.platform,
        )

    def step(self) -> Metrics:
        """Run one iteration of Algorithm 1 and return its metrics. Collective over all ranks.

        A step without a batch changes no weight; schedules and versions advance as in any other step.

        Raises:
            VerifierAwayError: a reward server was away for too long; no weight has changed.
        """
        metrics, context, memory, activity = Metrics(), self._context, self._memory, StepActivity()
        trained: TrainedBatch | None = None
        with metrics.timed("step"):
            with memory.phase(metrics, "weight_sync"):
                metrics.add("weight_sync", self.sync_weights())
            with memory.phase(metrics, "rollout"):
                with release_after(context.engine):
                    batch = context.batches.collect(self.step_index)
                context.batches.collect_ahead(self.step_index)
            metrics.add("throughput", batch.throughput)
            if isinstance(batch, NoBatch):
                self._pass_over(batch, metrics)
            else:
                trained = self._train_beside_sampling(batch, metrics)
            with metrics.timed("rollout_wait"):
                context.batches.finish()
        if trained is not None:
            for observe in context.observers:
                observe(self.step_index + 1, trained)
            self._describe(metrics, trained)
        metrics.update(phase_fractions(metrics) | activity.metrics())
        metrics.update(process_memory() | self._memory.host_copies())
        self.step_index += 1
        return metrics

    def sync_weights(self) -> dict[str, float]:
        """Give the engine the policy's weights, unless it has them. Collective over all ranks.

        Returns measurements of the sync, none if the engine has the weights.

        This comes before sampling and not after training, so that a checkpoint is written while servers on the same
        GPUs hold no memory.
        """
        engine = self._context.engine
        if engine.policy_version == self.step_index:
            return {}
        if engine.policy_version == NO_WEIGHTS:
            free_memory_for_servers(self._context.policy.topology)
        return self._context.weight_sync.push(self.step_index)

    def _pass_over(self, nothing: NoBatch, metrics: Metrics) -> None:
        """End a step that has nothing to train on."""
        self._context.warn(f"{nothing.reason} No weight was changed in this step")
        metrics.add("rollout", nothing.stats)
        self._context.policy.advance_schedule()
        prm = self._context.prm_phase and self._context.prm_phase.prm
        if isinstance(prm, Trainable):
            prm.advance_schedule()

    def _train_beside_sampling(self, batch: RolloutBatch, metrics: Metrics) -> TrainedBatch:
        try:
            return self._train_on(self._on_device(batch), metrics)
        except FloatingPointError:
            # Every rank raises it, and closes the engine next, which must not be sampling.
            self._context.batches.finish()
            raise

    def _train_on(self, batch: RolloutBatch, metrics: Metrics) -> TrainedBatch:
        """Update PRM and policy on a batch."""
        context, memory = self._context, self._memory
        sequences = [(rollout.prompt.token_ids, rollout.response_ids) for rollout in batch.rollouts]
        with memory.phase(metrics, "logprobs"):
            old = context.policy.score(sequences, self._routing(batch))
            ref_logprobs_BT = self._ref_logprobs(sequences, old)
        with memory.phase(metrics, "prm"):
            process = self._process_rewards(batch, sequences, old, ref_logprobs_BT, metrics)
        with memory.phase(metrics, "advantage"):
            advantages_BT = self._advantages(batch, process and process.credited, metrics)
        with memory.phase(metrics, "policy"):
            update = self._update_policy(batch, sequences, old, ref_logprobs_BT, advantages_BT)
        metrics.add("policy", update)
        if "grad_norm" not in update:
            context.warn(
                f"step {self.step_index + 1} changed no weight: filter.overlong = 'mask' leaves all its responses out, "
                "because all are truncated. Raise rollout.max_response_tokens, or look whether the model ever ends a "
                "response"
            )
        prm_logprobs_BT, rewards_BT = process and process.prm_logprobs_BT, process and process.rewards_BT
        return TrainedBatch(batch, old, ref_logprobs_BT, prm_logprobs_BT, rewards_BT, advantages_BT)

    def _on_device(self, batch: RolloutBatch) -> RolloutBatch:
        return batch.to(self._context.policy.topology.platform.device)

    def _routing(self, batch: RolloutBatch) -> Routing | None:
        """Return the experts that the engine chose for each token, where it reported them.

        The policy alone replays them: PRM and reference have other weights, and their log-ratio must start at 0.
        """
        routed = [rollout.routed_experts for rollout in batch.rollouts]
        return None if all(experts is None for experts in routed) else routed

    def _ref_logprobs(self, sequences: Sequences, old: Scores) -> torch.Tensor | None:
        if self._context.reference is not None:
            return self._context.reference.score(sequences).logprobs_BT
        return old.logprobs_BT if self.config.reference.mode == "policy" else None

    def _process_rewards(
        self,
        batch: RolloutBatch,
        sequences: Sequences,
        old: Scores,
        ref_logprobs_BT: torch.Tensor | None,
        metrics: Metrics,
    ) -> ProcessRewards | None:
        """Return the process rewards (Eq. 3) of the PRM before or after its update, or of the policy, as configured."""
        prm, phase = self.config.prm, self._context.prm_phase
        if not prm.enabled:
            return None
        if prm.is_critic:
            ref_logprobs_BT = torch.zeros_like(old.logprobs_BT)
        assert ref_logprobs_BT is not None
        if phase is None:
            result = policy_as_prm(batch, old.logprobs_BT, ref_logprobs_BT, prm)
        else:
            result = phase.run(batch, sequences, ref_logprobs_BT, self.step_index)
        process = ProcessRewards.of(batch, result.logprobs_BT, ref_logprobs_BT, self.config)
        metrics.add("prm", result.metrics)
        metrics.add("prm", process.metrics(batch.scored_mask_BT(prm.scored_tokens)))
        if not prm.is_critic:
            metrics.add("prm", turn_metrics(batch, result.logprobs_BT, ref_logprobs_BT, prm))
        return process

    def _advantages(
        self, batch: RolloutBatch, credited: CreditedRewards | None, metrics: Metrics
    ) -> torch.Tensor:
        config, policy_BT = self.config.advantage, batch.policy_mask_BT
        if not config.counts_process(self.step_index):
            credited = None
        parts_BT = advantage_parts(
            batch.outcome_rewards_B,
            credited and credited.rewards_BT,
            batch.response_mask_BT,
            batch.group_ids_B,
            config,
            credited and credited.positions_BT,
            batch.outcome_penalties_B,
            policy_BT,
            batch.turn_rewards_BT,
        )
        metrics["advantage/process_share"] = process_share(parts_BT, policy_BT)
        return joined_parts(parts_BT, policy_BT, config)

    def _update_policy(
        self,
        batch: RolloutBatch,
        sequences: Sequences,
        old: Scores,
        ref_logprobs_BT: torch.Tensor | None,
        advantages_BT: torch.Tensor,
    ) -> dict[str, float]:
        """Take all optimizer steps of the policy; return the mean of their metrics."""
        config = self.config.corrected_policy

        def make_loss(rows: Sequence[int]) -> PolicyRowLoss:
            return PolicyRowLoss(
                config=config,
                weights_BT=minibatch_weights_BT(
                    batch.policy_mask_BT,
                    batch.trained_rows(rows),
                    config.aggregation,
                    self.config.rollout.max_response_tokens,
                ),
                old_logprobs_BT=old.logprobs_BT,
                advantages_BT=advantages_BT,
                rollout_logprobs_BT=batch.rollout_logprobs_BT,
                ref_logprobs_BT=ref_logprobs_BT,
            )

        key = (self.config.seed, self.step_index)
        _, metrics = update_on_batch(
            self._context.policy, batch, sequences, config, make_loss, key, self._routing(batch)
        )
        return metrics

    def _describe(self, metrics: Metrics, trained: TrainedBatch) -> None:
        """Add the metrics of the batch as a whole."""
        batch, old, advantages_BT = trained.batch, trained.old, trained.advantages_BT
        mask_BT = batch.policy_mask_BT
        mismatch = Mismatch.of(old.logprobs_BT, batch.rollout_logprobs_BT, mask_BT)
        metrics.add("rollout", batch.stats)
        metrics.add("policy", self._correction(batch, old))
        metrics.add("rollout", staleness(batch, self.step_index))
        metrics["rollout/logprob_gap"] = mismatch.mean
        metrics["rollout/logprob_gap_max"] = mismatch.max
        metrics["advantage/mean"] = advantages_BT[mask_BT].mean().item()
        metrics["advantage/std"] = advantages_BT[mask_BT].std(unbiased=False).item()
        metrics["policy/response_entropy"] = (old.entropy_BT * mask_BT).double().sum(dim=1).mean().item()
        self._describe_credit(metrics, trained)
        metrics["throughput/response_tokens_per_s"] = batch.num_response_tokens / metrics["time/step_s"]
        waited = [rollout.environment_s for rollout in batch.rollouts]
        if any(waited):
            # Not among the statistics of the collection, which a resumed run repeats.
            metrics["throughput/environment_wait_s"] = sum(waited) / len(waited)

    def _correction(self, batch: RolloutBatch, old: Scores) -> dict[str, float]:
        """Return how far the policy before its update is from what sampled the tokens that it was trained on."""
        mask_BT = batch.policy_mask_BT
        if batch.is_trained_B is not None:
            mask_BT = mask_BT & batch.is_trained_B[:, None]
        found = correction_metrics(
            old.logprobs_BT, batch.rollout_logprobs_BT, mask_BT, self.config.corrected_policy
        )
        return dict(zip(found, torch.stack([*found.values()]).tolist(), strict=True))

    def _describe_credit(self, metrics: Metrics, trained: TrainedBatch) -> None:
        """Add the signs of process rewards that mislead."""
        formats, rewards_BT = self._context.format_tokens, trained.process_rewards_BT
        # These are signs of log-ratios that mislead.
        if formats is None or rewards_BT is None or self.config.prm.is_critic:
            return
        assert trained.prm_logprobs_BT is not None
        assert trained.ref_logprobs_BT is not None
        found = credit_metrics(
            trained.batch,
            trained.prm_logprobs_BT,
            trained.ref_logprobs_BT,
            rewards_BT,
            self.config.prm,
            formats,
        )
        metrics.add("prm", found)


def staleness(batch: RolloutBatch, step_index: int) -> dict[str, float]:
    """Return by how many steps the weights that sampled the batch are older than those of a step, over its tokens."""
    counts: Counter[int] = Counter()
    for rollout in batch.rollouts:
        counts.update(rollout.tokens_by_version)
    # A version of which only an environment's tokens are left did not sample.
    counts = +counts
    total = sum((step_index - version) * count for version, count in counts.items())
    return {"staleness_mean": total / counts.total(), "staleness_max": step_index - min(counts)}
