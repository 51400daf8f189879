"""Lines 2-5 of Algorithm 1: sample, verify and filter until the batch is full.

prompt stream -> engine -> verifier -> filter --kept--> batch
      ^                                  |
      +--- another round for the rest ---+
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from megatron_prime.config.schema import FilterConfig
from megatron_prime.rollout.collection_stats import CollectionTally
from megatron_prime.rollout.engine import Engine
from megatron_prime.rollout.group_filter import Group, Verdict, judge_groups, split_groups
from megatron_prime.rollout.stream_keys import training_stream_key
from megatron_prime.rollout.verification import RolloutVerifier
from megatron_prime.types import Prompt, RolloutBatch, SamplingParams

MAX_ROUND_FACTOR = 2
"""A round samples at most so many times prompts_per_step, however few groups the filter keeps."""

StepSegmenter = Callable[[Sequence[int]], Sequence[int]]
"""Response token ids -> the reasoning step of each token, nondecreasing."""


class PromptStream(Protocol):
    """An endless, resumable sequence of prompts."""

    def next(self, num_prompts: int, /) -> Sequence[Prompt]:
        """The next num_prompts prompts, the same on every rank."""
        ...


class Collector:
    """Fills training batches. Collective: every rank builds it alike and collects the same steps."""

    def __init__(
        self,
        engine: Engine,
        prompt_stream: PromptStream,
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
        """Keep the parts.

        Args:
            engine: samples.
            prompt_stream: advances by the prompts of every round; its position belongs into checkpoints.
            verifier: gives outcomes.
            sampling: how to sample.
            filter_config: which groups to keep and what to do when too few are.
            prompts_per_step: groups in a full batch.
            group_size: responses a prompt.
            rows_multiple_of: the number of responses of every batch is a multiple of this (the least common
                multiple of the minibatch counts).
            step_segmenter: given for step granularity only; fills RolloutBatch.step_ids_BT.
            allow_mixed_versions: take groups whose responses were sampled by different weights.

        Raises:
            ValueError: a full batch has no multiple of rows_multiple_of responses.
        """
        if prompts_per_step < 1 or group_size < 1 or rows_multiple_of < 1:
            raise ValueError("prompts_per_step, group_size and rows_multiple_of must be positive")
        if prompts_per_step * group_size % rows_multiple_of:
            raise ValueError(
                f"prompts_per_step * group_size = {prompts_per_step} * {group_size} responses are no multiple of "
                f"{rows_multiple_of}: change trainer.prompts_per_step or the num_minibatches"
            )
        self._engine = engine
        self._prompt_stream = prompt_stream
        self._verifier = verifier
        self._sampling = sampling
        self._filter = filter_config
        self._prompts_per_step = prompts_per_step
        self._group_size = group_size
        self._groups_multiple_of = rows_multiple_of // math.gcd(rows_multiple_of, group_size)
        self._step_segmenter = step_segmenter
        self._allow_mixed_versions = allow_mixed_versions

    def collect(self, step_index: int) -> RolloutBatch:
        """Collect the batch of a step; see `CollectionTally.stats` for its stats.

        The random numbers depend on step_index and the round alone, so that a resumed run samples the same.

        Raises:
            RuntimeError: too few groups passed the filter and filter.on_shortage is "error", or no batch can be
                made of them; or the engine or the prompt stream broke its contract.
        """
        tally = CollectionTally()
        kept: list[Group] = []
        for round_index in range(self._filter.max_rounds):
            groups = self._sample_groups(self._round_size(len(kept), tally), step_index, round_index)
            verdicts = judge_groups(groups, self._filter)
            tally.add_round(groups, verdicts)
            kept += [
                group for group, verdict in zip(groups, verdicts, strict=True) if verdict is Verdict.KEPT
            ]
            if len(kept) >= self._prompts_per_step:
                break
        batch_groups = self._cut(kept, tally, step_index)
        num_trimmed = min(len(kept), self._prompts_per_step) - len(batch_groups)
        return self._to_batch(batch_groups, tally.stats(batch_groups, num_trimmed))

    def _round_size(self, num_kept: int, tally: CollectionTally) -> int:
        """Prompts to sample so that the batch fills if the filter goes on keeping as many."""
        num_missing = self._prompts_per_step - num_kept
        return min(math.ceil(num_missing / tally.keep_rate), MAX_ROUND_FACTOR * self._prompts_per_step)

    def _sample_groups(self, num_prompts: int, step_index: int, round_index: int) -> list[Group]:
        prompts = self._prompt_stream.next(num_prompts)
        if len(prompts) != num_prompts:
            raise RuntimeError(f"the prompt stream gave {len(prompts)} prompts instead of {num_prompts}")
        stream_key = training_stream_key(step_index, round_index)
        rollouts = self._engine.generate(prompts, self._sampling, self._group_size, stream_key)
        if len(rollouts) != num_prompts * self._group_size:
            raise RuntimeError(
                f"the engine returned {len(rollouts)} rollouts for {num_prompts} prompts x {self._group_size}"
            )
        return split_groups(
            self._verifier(rollouts), self._group_size, allow_mixed_versions=self._allow_mixed_versions
        )

    def _cut(self, kept: list[Group], tally: CollectionTally, step_index: int) -> list[Group]:
        """The groups to train on: the first of those kept, never a rejected one to fill up."""
        if len(kept) >= self._prompts_per_step:
            return kept[: self._prompts_per_step]
        shortage = f"step {step_index} kept {len(kept)} of the {self._prompts_per_step} prompts it needs"
        if self._filter.on_shortage == "error":
            raise RuntimeError(
                f"{shortage}. {tally.explain()} filter.on_shortage = 'partial' goes on with fewer."
            )
        num_usable = len(kept) - len(kept) % self._groups_multiple_of
        if num_usable == 0:
            raise RuntimeError(
                f"{shortage}; the minibatches need a positive multiple of {self._groups_multiple_of} prompts. "
                f"{tally.explain()}"
            )
        return kept[:num_usable]

    def _to_batch(self, groups: Sequence[Group], stats: dict[str, float]) -> RolloutBatch:
        rollouts = [rollout for group in groups for rollout in group]
        segmenter = self._step_segmenter
        return RolloutBatch.from_rollouts(
            rollouts,
            # By place, not by prompt index: a prompt that came twice has two groups with a baseline each.
            group_ids=[number for number, group in enumerate(groups) for _ in group],
            step_ids=None if segmenter is None else [segmenter(rollout.response_ids) for rollout in rollouts],
            stats=stats,
        )
