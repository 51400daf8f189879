"""Collection of a training batch: sample, verify and filter until it is full (lines 2-5 of Algorithm 1).

prompts -> engine -> verifier -> filter --kept--> batch
   ^                               |
   +-- the next prompt at once ----+ dropped

The three work at the same time: a group is verified as soon as it has finished. The batch is made of the first groups
that the filter keeps, in the order of the prompts (`prefix`), so that it does not depend on what finishes first.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from megatron_prime.algorithm.overlong import overlong_penalties_B
from megatron_prime.config.tables.filter import FilterConfig
from megatron_prime.rollout.collection_stats import CollectionTally, environment_stats
from megatron_prime.rollout.collector_state import CollectorState
from megatron_prime.rollout.engine import Engine
from megatron_prime.rollout.episode import Environments
from megatron_prime.rollout.group_filter import FilterDecision, Group, decide_group
from megatron_prime.rollout.prefix import Prefix, max_prompts
from megatron_prime.rollout.prompt_history import PromptRecord
from megatron_prime.rollout.prompt_queue import PromptQueue
from megatron_prime.rollout.ranks import Ranks
from megatron_prime.rollout.sampled_groups import GroupObserver
from megatron_prime.rollout.stream_keys import training_stream_key
from megatron_prime.rollout.verification import RolloutVerifier
from megatron_prime.rollout.verified_groups import VerifiedGroups, verified_groups
from megatron_prime.types import FinishReason, RolloutBatch, SamplingParams, Turn, policy_spans

StepSegmenter = Callable[[Sequence[int]], Sequence[int]]
"""Maps the token ids of a text to the reasoning step of each token, from 0 and nondecreasing."""


@dataclass(frozen=True)
class NoBatch:
    """The result of a step in which too few groups passed the filter to train on."""

    stats: dict[str, float]
    """The statistics of the collection."""
    reason: str
    """The counts, and a suggestion."""
    throughput: dict[str, float] = field(default_factory=dict)
    """See RolloutBatch.throughput."""


@dataclass(frozen=True, slots=True)
class BatchSize:
    """The size of the batches of a run.

    Raises:
        ValueError: the number of responses in a full batch is not a multiple of rows_multiple_of.
    """

    prompts_per_step: int
    """Number of groups in a full batch."""
    group_size: int
    """Responses per prompt."""
    rows_multiple_of: int = 1
    """Divisor of the number of responses in every batch (the least common multiple of the minibatch counts)."""
    max_in_flight: int | None = None
    """Most responses that are sampled at a time; None for as many as the engine takes."""

    def __post_init__(self) -> None:
        if self.prompts_per_step < 1 or self.group_size < 1 or self.rows_multiple_of < 1:
            raise ValueError("prompts_per_step, group_size and rows_multiple_of must be positive")
        if self.prompts_per_step * self.group_size % self.rows_multiple_of:
            raise ValueError(
                f"prompts_per_step * group_size = {self.prompts_per_step} * {self.group_size} responses are not a "
                f"multiple of {self.rows_multiple_of}: change trainer.prompts_per_step or the num_minibatches"
            )

    @property
    def groups_multiple_of(self) -> int:
        """Divisor of the number of groups in every batch."""
        # n groups have n * group_size rows, a multiple of rows_multiple_of exactly if n is a multiple of this.
        return self.rows_multiple_of // math.gcd(self.rows_multiple_of, self.group_size)

    @property
    def max_groups_in_flight(self) -> float:
        """Most groups that are sampled at a time."""
        return math.inf if self.max_in_flight is None else max(1, self.max_in_flight // self.group_size)


class Collector:
    """Collects training batches. Every rank constructs it with equal arguments and collects the same steps."""

    def __init__(
        self,
        engine: Engine,
        prompts: PromptQueue,
        verifier: RolloutVerifier,
        sampling: SamplingParams,
        filter_config: FilterConfig,
        size: BatchSize,
        *,
        step_segmenter: StepSegmenter | None = None,
        allow_mixed_versions: bool = False,
    ) -> None:
        """Initialize the collector.

        Args:
            engine: samples the responses.
            prompts: the prompts of the run; their position must be saved in checkpoints.
            verifier: computes the outcomes.
            sampling: sampling parameters of the responses.
            filter_config: criteria for keeping groups, and the behaviour if too few are kept.
            size: of the batches.
            step_segmenter: fills RolloutBatch.step_ids_BT; only for rewards with step granularity.
            allow_mixed_versions: accept groups whose responses were sampled by different policy versions.
        """
        self._engine = engine
        self.prompts = prompts
        """The prompts of the run."""
        self._verifier = verifier
        self._sampling = sampling
        self._filter = filter_config
        self.size = size
        """The size of the batches."""
        self._step_segmenter = step_segmenter
        self._allow_mixed_versions = allow_mixed_versions
        self.environments: Environments | None = None
        """Replies to the turns of the responses; None for responses of one turn. Must be set before the first step."""
        self.observe: GroupObserver | None = None
        """Receives all groups of each step, once the batch is known."""
        self._state = CollectorState()
        self._records: list[PromptRecord] = []

    @property
    def ranks(self) -> Ranks:
        """The ranks that collect together."""
        return self._verifier.ranks

    @property
    def last_records(self) -> Sequence[PromptRecord]:
        """All groups sampled in the last step, kept or dropped, in order; equal on every rank."""
        return self._records

    def state_dict(self) -> dict[str, Any]:
        """Return the state that later steps depend on, as JSON values that are equal on every rank."""
        return asdict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; an empty one resets the collector."""
        self._state = CollectorState(**state)

    def collect(self, step_index: int) -> RolloutBatch | NoBatch:
        """Collect the batch of a step; `CollectionTally.stats` documents its stats. Collective.

        Without a group to train on, the result is a NoBatch, unless filter.on_shortage is "error".

        The random numbers depend only on step_index, so a resumed run samples the same responses.

        Raises:
            RuntimeError: too few groups passed the filter and filter.on_shortage is "error"; too many steps in a row
                were short; or the engine or the prompt stream returned a wrong number of items.
        """
        return self.batch_of(step_index, *self._sample(step_index))

    def batch_of(
        self,
        step_index: int,
        sampled: Sequence[tuple[Group, FilterDecision]],
        throughput: dict[str, float],
        further_stats: Mapping[str, float] | None = None,
    ) -> RolloutBatch | NoBatch:
        """Return the batch of a step that has sampled these groups; see `collect`, also for the errors."""
        tally = CollectionTally([group for group, _ in sampled], [decision for _, decision in sampled])
        kept = [group for group, decision in sampled if decision is FilterDecision.KEPT]
        self._records = tally.records()
        # An error about this step comes before the one of `_update_state` about a run of short steps.
        batch_groups = self._cut(kept, tally, step_index)
        self._update_state(tally, step_index, is_empty=not batch_groups)
        stats = tally.stats(batch_groups) | dict(further_stats or {})
        if self.environments is not None:
            stats |= environment_stats([rollout for group in tally.groups for rollout in group])
        if self.observe is not None:
            self.observe(step_index, tally.sampled(len(batch_groups)))
        if not batch_groups:
            return NoBatch(stats, f"{self._shortage(kept, step_index)}. {tally.explain()}", throughput)
        return self._to_batch(batch_groups, stats, throughput)

    def _sample(self, step_index: int) -> tuple[list[tuple[Group, FilterDecision]], dict[str, float]]:
        """Return the groups that the step uses, in the order of the prompts, and counts that depend on timing.

        Prompts that the step does not use stay in the queue.
        """
        prefix = self.prefix()
        with self.open(step_index) as groups_in_work:
            while not prefix.is_complete:
                self._submit(prefix, groups_in_work)
                for number, group in groups_in_work.finished():
                    prefix.decide(number, group, self.decide(group))
        groups = prefix.groups()
        self.prompts.take(len(groups))
        return groups, {"groups_aborted": float(prefix.num_submitted - len(groups))}

    def prefix(self) -> Prefix:
        """Return the groups of a step before any of them is decided."""
        needed = self.size.prompts_per_step
        return Prefix(needed, max_prompts(self._filter, needed), self._state.keep_rate)

    def decide(self, group: Group) -> FilterDecision:
        """Return the filter's decision on a verified group."""
        return decide_group(group, self._filter)

    def while_training(self) -> AbstractContextManager[None]:
        """See `Engine.while_training`."""
        return self._engine.while_training()

    def open(self, step_index: int) -> AbstractContextManager[VerifiedGroups]:
        """Return a stream of groups with the random numbers of a step."""
        return verified_groups(
            self._engine,
            self._verifier,
            self._sampling,
            self.size.group_size,
            training_stream_key(step_index),
            self.environments,
            allow_mixed_versions=self._allow_mixed_versions,
        )

    def _submit(self, prefix: Prefix, groups: VerifiedGroups) -> None:
        """Sample as far ahead as the batch is likely to need and the limits allow."""
        if groups.is_batched and prefix.num_undecided:
            return
        count = int(min(prefix.num_wanted(), self.size.max_groups_in_flight - groups.num_in_flight))
        if count > 0:
            groups.submit(self.prompts.ahead(prefix.num_submitted, count))
            prefix.num_submitted += count

    def _update_state(self, tally: CollectionTally, step_index: int, is_empty: bool) -> None:
        is_short = tally.num_kept < self._filter.short_fraction * self.size.prompts_per_step
        self._state = self._state.update(tally, is_short or is_empty)
        limit = self._filter.max_short_steps
        if limit and self._state.num_short_steps >= limit:
            raise RuntimeError(
                f"steps {step_index + 1 - limit} to {step_index} kept less than {self._filter.short_fraction:.0%} of "
                f"{self.size.prompts_per_step} prompts each. {self._state.explain()} The last step: {tally.explain()} "
                "filter.max_short_steps = 0 disables this check."
            )

    def _cut(self, kept: list[Group], tally: CollectionTally, step_index: int) -> list[Group]:
        """Return the groups of the batch: the first of the kept ones; dropped groups never fill it up."""
        if len(kept) == self.size.prompts_per_step:
            return kept
        if self._filter.on_shortage == "error":
            raise RuntimeError(
                f"{self._shortage(kept, step_index)}. {tally.explain()} filter.on_shortage = 'partial' trains on fewer "
                "prompts."
            )
        return kept[: len(kept) - len(kept) % self.size.groups_multiple_of]

    def _shortage(self, kept: list[Group], step_index: int) -> str:
        shortage = f"step {step_index} kept {len(kept)} of the {self.size.prompts_per_step} prompts it needs"
        if 0 < len(kept) < self.size.groups_multiple_of:
            shortage += (
                f"; the minibatches need a positive multiple of {self.size.groups_multiple_of} prompts"
            )
        return shortage

    def _to_batch(
        self, groups: Sequence[Group], stats: dict[str, float], throughput: dict[str, float]
    ) -> RolloutBatch:
        rollouts = [rollout for group in groups for rollout in group]
        segmenter = self._step_segmenter
        batch = RolloutBatch.from_rollouts(
            rollouts,
            # Groups are numbered by position, not by prompt index: a prompt that was sampled twice has two groups, each
            # with its own baseline.
            group_ids=[number for number, group in enumerate(groups) for _ in group],
            step_ids=None
            if segmenter is None
            else [
                step_ids_of_response(segmenter, rollout.response_ids, rollout.turns) for rollout in rollouts
            ],
            stats=stats,
        )
        return self._with_overlong(replace(batch, throughput=throughput))

    def _with_overlong(self, batch: RolloutBatch) -> RolloutBatch:
        """Mask or penalize responses at or near the length limit, as filter.overlong specifies."""
        config, limit = self._filter, self._sampling.max_response_tokens
        if config.overlong == "mask":
            # Masked rows keep their outcomes: they still count in the baseline of their group.
            is_trained = [rollout.finish_reason is not FinishReason.LENGTH for rollout in batch.rollouts]
            stats = batch.stats | {"num_masked": float(is_trained.count(False))}
            return replace(batch, is_trained_B=torch.tensor(is_trained), stats=stats)
        if config.overlong == "penalize":
            # The penalty is kept apart from the outcome, which stays the verifier's for the filter and the PRM's
            # labels.
            buffer = config.overlong_buffer_tokens or max(1, limit // 5)
            lengths_B = batch.response_mask_BT.sum(dim=1)
            penalties_B = overlong_penalties_B(lengths_B, limit, buffer, config.overlong_penalty)
            stats = batch.stats | {"mean_overlong_penalty": float(penalties_B.mean())}
            return replace(batch, outcome_penalties_B=penalties_B, stats=stats)
        return batch


def step_ids_of_response(
    segmenter: StepSegmenter, response_ids: Sequence[int], turns: Sequence[Turn]
) -> list[int]:
    """Return the reasoning step of each token of a response, nondecreasing.

    Each turn of the policy is divided on its own, so that no step crosses a reply, which belongs to the step before it.
    """
    if not turns:
        return list(segmenter(response_ids))
    steps: list[int] = []
    for (start, end), turn in zip(policy_spans(turns, len(response_ids)), turns, strict=True):
        first = steps[-1] + 1 if steps else 0
        steps += [first + step for step in segmenter(response_ids[start:end])]
        steps += steps[-1:] * (turn.end - end)
    return steps
