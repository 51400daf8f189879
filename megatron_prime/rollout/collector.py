"""Lines 2-5 of Algorithm 1: sample, verify and filter until the batch is full.

prompt stream -> engine -> verifier -> filter --kept--> batch
      ^                                  |
      +--- another round for the rest ---+
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol

import torch

from megatron_prime.algorithm.overlong import overlong_penalties_B
from megatron_prime.config.tables.filter import FilterConfig
from megatron_prime.rollout.collection_pace import Pace
from megatron_prime.rollout.collection_stats import CollectionTally
from megatron_prime.rollout.engine import Engine
from megatron_prime.rollout.group_filter import Group, Verdict, judge_groups, split_groups
from megatron_prime.rollout.prompt_history import PromptRecord
from megatron_prime.rollout.stream_keys import training_stream_key
from megatron_prime.rollout.verification import RolloutVerifier
from megatron_prime.types import FinishReason, Prompt, RolloutBatch, SamplingParams

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
        self._pace = Pace()
        self._records: list[PromptRecord] = []

    @property
    def last_records(self) -> Sequence[PromptRecord]:
        """Every group sampled for the last step, kept or not, in order; equal on every rank."""
        return self._records

    def state_dict(self) -> dict[str, Any]:
        """What later steps need to know of earlier ones: plain JSON values, equal on every rank."""
        return asdict(self._pace)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; an empty state starts afresh."""
        self._pace = Pace(**state)

    def collect(self, step_index: int) -> RolloutBatch:
        """Collect the batch of a step; see `CollectionTally.stats` for its stats.

        The random numbers depend on step_index and the round alone, so that a resumed run samples the same.

        Raises:
            RuntimeError: too few groups passed the filter and filter.on_shortage is "error", or no batch can be
                made of them, or too many steps in a row were short; or the engine or the prompt stream broke its
                contract.
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
        self._records = tally.records()
        batch_groups = self._cut(kept, tally, step_index)
        self._check_pace(tally, step_index)
        num_trimmed = min(len(kept), self._prompts_per_step) - len(batch_groups)
        return self._to_batch(batch_groups, tally.stats(batch_groups, num_trimmed))

    def _round_size(self, num_kept: int, tally: CollectionTally) -> int:
        """Prompts to sample so that the batch fills if the filter goes on keeping as many."""
        num_missing = self._prompts_per_step - num_kept
        if tally.num_rounds == 0:
            # A second round waits for its own longest response: a first one that is large enough saves that.
            keep_rate = self._pace.keep_rate or 1.0
            most = math.floor(self._filter.oversample * self._prompts_per_step)
            return min(math.ceil(num_missing / keep_rate), most)
        most = math.floor(max(MAX_ROUND_FACTOR, self._filter.oversample) * self._prompts_per_step)
        return min(math.ceil(num_missing / tally.keep_rate), most)

    def _check_pace(self, tally: CollectionTally, step_index: int) -> None:
        is_short = tally.num_kept < self._filter.short_fraction * self._prompts_per_step
        self._pace = self._pace.after(tally, is_short)
        limit = self._filter.max_short_steps
        if limit and self._pace.num_short_steps >= limit:
            raise RuntimeError(
                f"steps {step_index + 1 - limit} to {step_index} kept less than {self._filter.short_fraction:.0%} of "
                f"{self._prompts_per_step} prompts each. {self._pace.explain()} The last step: {tally.explain()} "
                "filter.max_short_steps = 0 goes on all the same."
            )

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
        batch = RolloutBatch.from_rollouts(
            rollouts,
            # By place, not by prompt index: a prompt that came twice has two groups with a baseline each.
            group_ids=[number for number, group in enumerate(groups) for _ in group],
            step_ids=None if segmenter is None else [segmenter(rollout.response_ids) for rollout in rollouts],
            stats=stats,
        )
        return self._with_overlong(batch)

    def _with_overlong(self, batch: RolloutBatch) -> RolloutBatch:
        """The batch with what filter.overlong says of responses that were cut or nearly so."""
        config, limit = self._filter, self._sampling.max_response_tokens
        if config.overlong == "mask":
            is_trained = [rollout.finish_reason is not FinishReason.LENGTH for rollout in batch.rollouts]
            stats = batch.stats | {"num_masked": float(is_trained.count(False))}
            return replace(batch, is_trained_B=torch.tensor(is_trained), stats=stats)
        if config.overlong == "penalize":
            buffer = config.overlong_buffer_tokens or max(1, limit // 5)
            lengths_B = batch.response_mask_BT.sum(dim=1)
            penalties_B = overlong_penalties_B(lengths_B, limit, buffer, config.overlong_penalty)
            stats = batch.stats | {"mean_overlong_penalty": float(penalties_B.mean())}
            return replace(batch, outcome_penalties_B=penalties_B, stats=stats)
        return batch
