"""Collection of a training batch: sample, verify and filter until it is full (lines 2-5 of Algorithm 1).

prompt stream -> engine -> verifier -> filter --kept--> batch
      ^                                  |
      +--- another round for the rest ---+
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch

from megatron_prime.algorithm.overlong import overlong_penalties_B
from megatron_prime.config.tables.filter import FilterConfig
from megatron_prime.rollout.collection_stats import CollectionTally, environment_stats
from megatron_prime.rollout.collector_state import CollectorState
from megatron_prime.rollout.engine import Engine
from megatron_prime.rollout.episode import Environments
from megatron_prime.rollout.group_filter import FilterDecision, Group, decide_groups, split_groups
from megatron_prime.rollout.prompt_history import PromptRecord
from megatron_prime.rollout.sampled_groups import GroupObserver
from megatron_prime.rollout.stream_keys import training_stream_key
from megatron_prime.rollout.verification import RolloutVerifier
from megatron_prime.types import FinishReason, Prompt, RolloutBatch, SamplingParams, Turn, policy_spans

MAX_ROUND_FACTOR = 2
"""Upper limit of the prompts in a round, as a multiple of prompts_per_step, if the filter keeps few groups."""

StepSegmenter = Callable[[Sequence[int]], Sequence[int]]
"""Maps the token ids of a text to the reasoning step of each token, from 0 and nondecreasing."""


@dataclass(frozen=True)
class NoBatch:
    """The result of a step in which too few groups passed the filter to train on."""

    stats: dict[str, float]
    """The statistics of the collection."""
    reason: str
    """The counts, and a suggestion."""


class PromptProvider(Protocol):
    """An endless, resumable stream of prompts."""

    def next(self, num_prompts: int, /) -> Sequence[Prompt]:
        """Return the next `num_prompts` prompts, equal on every rank."""
        ...


class Collector:
    """Collects training batches. Every rank constructs it with equal arguments and collects the same steps."""

    def __init__(
        self,
        engine: Engine,
        prompts: PromptProvider,
        verifier: RolloutVerifier,
        sampling: SamplingParams,
        filter_config: FilterConfig,
        *,
        prompts_per_step: int,
        group_size: int,
        rows_multiple_of: int = 1,
        step_segmenter: StepSegmenter | None = None,
        allow_mixed_versions: bool = False,
    ) -> None:
        """Initialize the collector.

        Args:
            engine: samples the responses.
            prompts: provides the prompts of every round; its position must be saved in checkpoints.
            verifier: computes the outcomes.
            sampling: sampling parameters of the responses.
            filter_config: criteria for keeping groups, and the behaviour if too few are kept.
            prompts_per_step: number of groups in a full batch.
            group_size: responses per prompt.
            rows_multiple_of: divisor of the number of responses in every batch (the least common multiple of the
                minibatch counts).
            step_segmenter: fills RolloutBatch.step_ids_BT; only for rewards with step granularity.
            allow_mixed_versions: accept groups whose responses were sampled by different policy versions.

        Raises:
            ValueError: the number of responses in a full batch is not a multiple of rows_multiple_of.
        """
        if prompts_per_step < 1 or group_size < 1 or rows_multiple_of < 1:
            raise ValueError("prompts_per_step, group_size and rows_multiple_of must be positive")
        if prompts_per_step * group_size % rows_multiple_of:
            raise ValueError(
                f"prompts_per_step * group_size = {prompts_per_step} * {group_size} responses are not a multiple of "
                f"{rows_multiple_of}: change trainer.prompts_per_step or the num_minibatches"
            )
        self._engine = engine
        self._prompts = prompts
        self._verifier = verifier
        self._sampling = sampling
        self._filter = filter_config
        self._prompts_per_step = prompts_per_step
        self._group_size = group_size
        # n groups have n * group_size rows, a multiple of rows_multiple_of exactly if n is a multiple of this.
        self._groups_multiple_of = rows_multiple_of // math.gcd(rows_multiple_of, group_size)
        self._step_segmenter = step_segmenter
        self._allow_mixed_versions = allow_mixed_versions
        self.environments: Environments | None = None
        """Replies to the turns of the responses; None for responses of one turn. Must be set before the first step."""
        self.observe: GroupObserver | None = None
        """Receives all groups of each step, once the batch is known."""
        self._state = CollectorState()
        self._records: list[PromptRecord] = []

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

        The random numbers depend only on step_index and the round, so a resumed run samples the same responses.

        Raises:
            RuntimeError: too few groups passed the filter and filter.on_shortage is "error"; too many steps in a row
                were short; or the engine or the prompt provider returned a wrong number of items.
        """
        tally = CollectionTally()
        kept: list[Group] = []
        for round_index in range(self._filter.max_rounds):
            groups = self._sample_groups(self._round_size(len(kept), tally), step_index, round_index)
            if not groups:  # a replay has no more rounds
                break
            decisions = decide_groups(groups, self._filter)
            tally.add_round(groups, decisions)
            kept += [
                group
                for group, decision in zip(groups, decisions, strict=True)
                if decision is FilterDecision.KEPT
            ]
            if len(kept) >= self._prompts_per_step:
                break
        self._records = tally.records()
        # Surplus groups are not kept for the next step, whose policy will be newer than the one that sampled them.
        # An error about this step comes before the one of `_update_state` about a run of short steps.
        batch_groups = self._cut(kept, tally, step_index)
        self._update_state(tally, step_index, is_empty=not batch_groups)
        num_trimmed = min(len(kept), self._prompts_per_step) - len(batch_groups)
        stats = tally.stats(batch_groups, num_trimmed)
        if self.environments is not None:
            stats |= environment_stats([rollout for group in tally.groups for rollout in group])
        if self.observe is not None:
            self.observe(step_index, tally.sampled(len(batch_groups), num_trimmed))
        if not batch_groups:
            return NoBatch(stats, f"{self._shortage(kept, step_index)}. {tally.explain()}")
        return self._to_batch(batch_groups, stats)

    def _round_size(self, num_kept: int, tally: CollectionTally) -> int:
        """Return the number of prompts that will fill the batch if the filter keeps groups at the same rate."""
        num_missing = self._prompts_per_step - num_kept
        if tally.num_rounds == 0:
            # Every round waits for its longest response, so oversampling in the first one saves a second round.
            keep_rate = self._state.keep_rate or 1.0
            most = math.floor(self._filter.oversample * self._prompts_per_step)
            return min(math.ceil(num_missing / keep_rate), most)
        # The rate of this step is more accurate now. It is smoothed, so it is not zero if nothing was kept so far.
        most = math.floor(max(MAX_ROUND_FACTOR, self._filter.oversample) * self._prompts_per_step)
        return min(math.ceil(num_missing / tally.keep_rate), most)

    def _update_state(self, tally: CollectionTally, step_index: int, is_empty: bool) -> None:
        is_short = tally.num_kept < self._filter.short_fraction * self._prompts_per_step
        self._state = self._state.update(tally, is_short or is_empty)
        limit = self._filter.max_short_steps
        if limit and self._state.num_short_steps >= limit:
            raise RuntimeError(
                f"steps {step_index + 1 - limit} to {step_index} kept less than {self._filter.short_fraction:.0%} of "
                f"{self._prompts_per_step} prompts each. {self._state.explain()} The last step: {tally.explain()} "
                "filter.max_short_steps = 0 disables this check."
            )

    def _sample_groups(self, num_prompts: int, step_index: int, round_index: int) -> list[Group]:
        prompts = self._prompts.next(num_prompts)
        if len(prompts) != num_prompts:
            raise RuntimeError(f"the prompt stream returned {len(prompts)} prompts instead of {num_prompts}")
        stream_key = training_stream_key(step_index, round_index)
        rollouts = self._engine.generate(
            prompts, self._sampling, self._group_size, stream_key, self.environments
        )
        if len(rollouts) != num_prompts * self._group_size:
            raise RuntimeError(
                f"the engine returned {len(rollouts)} rollouts for {num_prompts} prompts x {self._group_size}"
            )
        return split_groups(
            self._verifier(rollouts), self._group_size, allow_mixed_versions=self._allow_mixed_versions
        )

    def _cut(self, kept: list[Group], tally: CollectionTally, step_index: int) -> list[Group]:
        """Return the groups of the batch: the first of the kept ones; dropped groups never fill it up."""
        if len(kept) >= self._prompts_per_step:
            return kept[: self._prompts_per_step]
        if self._filter.on_shortage == "error":
            raise RuntimeError(
                f"{self._shortage(kept, step_index)}. {tally.explain()} filter.on_shortage = 'partial' trains on fewer "
                "prompts."
            )
        return kept[: len(kept) - len(kept) % self._groups_multiple_of]

    def _shortage(self, kept: list[Group], step_index: int) -> str:
        shortage = f"step {step_index} kept {len(kept)} of the {self._prompts_per_step} prompts it needs"
        if 0 < len(kept) < self._groups_multiple_of:
            shortage += f"; the minibatches need a positive multiple of {self._groups_multiple_of} prompts"
        return shortage

    def _to_batch(self, groups: Sequence[Group], stats: dict[str, float]) -> RolloutBatch:
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
        return self._with_overlong(batch)

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
