"""A batch of made-up responses, equal on every rank, whose lengths have a given mean."""

import random
from collections.abc import Sequence
from typing import Any

from megatron_prime.config.run import PrimeConfig
from megatron_prime.rollout.held_batch import HeldBatch
from megatron_prime.rollout.prompt_history import PromptRecord
from megatron_prime.types import FinishReason, Prompt, Rollout, RolloutBatch

STEP_TOKENS = 64
"""Tokens of a reasoning step, where the PRM rewards steps."""


def lengths(number: int, mean: float, longest: int, seed: int) -> list[int]:
    """Return lengths evenly spaced over the widest interval around the mean that ends at most at `longest`, shuffled.

    The interval is [1, 2 mean - 1] up to half of the longest, and [2 mean - longest, longest] above.
    """
    mean = min(max(1.0, mean), float(longest))
    reach = min(mean - 1, longest - mean)
    spaced = [
        round(mean - reach + 2 * reach * index / max(1, number - 1)) if number > 1 else round(mean)
        for index in range(number)
    ]
    random.Random(seed).shuffle(spaced)
    return spaced


def rehearsed_batch(
    config: PrimeConfig, prompt_tokens: float, response_tokens: float, policy_version: int
) -> RolloutBatch:
    """Return the batch of a step: full, and with right and wrong responses in every group."""
    rollout, num_prompts = config.rollout, config.trainer.prompts_per_step
    group = rollout.group_size
    of_prompts = lengths(num_prompts, prompt_tokens, rollout.max_prompt_tokens, config.seed)
    of_responses = lengths(num_prompts * group, response_tokens, rollout.max_response_tokens, config.seed + 1)
    rows = [
        Rollout(
            prompt=Prompt(index, (1,) * of_prompts[index], ""),
            response_ids=(1,) * length,
            rollout_logprobs=(-1.0,) * length,
            finish_reason=FinishReason.STOP,
            sample_index=sample,
            policy_version=policy_version,
            outcome_reward=float(sample % 2),
        )
        for index in range(num_prompts)
        for sample, length in enumerate(of_responses[index * group : (index + 1) * group])
    ]
    has_steps = config.prm.enabled and config.prm.granularity == "step"
    step_ids = [[place // STEP_TOKENS for place in range(len(row.response_ids))] for row in rows]
    return RolloutBatch.from_rollouts(
        rows, [row.prompt.index for row in rows], step_ids if has_steps else None
    )


class RehearsedBatches:
    """Gives a trainer the same batch in every step. Implements `rollout.schedules.batches.BatchSource`.

    Args:
        batch: the batch.
    """

    held: HeldBatch | None = None
    """See `BatchSource`."""
    last_records: Sequence[PromptRecord] = ()
    """See `BatchSource`."""

    def __init__(self, batch: RolloutBatch) -> None:
        self._batch = batch

    def collect(self, step_index: int) -> RolloutBatch:
        """See `BatchSource.collect`."""
        return self._batch

    def collect_ahead(self, step_index: int) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: there is no collector."""
        return {}

    def resume(self, state: dict[str, Any], held: HeldBatch | None) -> None:
        """Do nothing."""
