"""Accuracy of the policy on held-out prompts: avg@k and pass@k."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from megatron_prime.config.schema import EvaluationConfig
from megatron_prime.rollout.collection_stats import accuracy_by_source, rollout_stats
from megatron_prime.rollout.engine import Engine
from megatron_prime.rollout.group_filter import Group, split_groups
from megatron_prime.rollout.verification import RolloutVerifier
from megatron_prime.types import Prompt, Rollout, SamplingParams


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Scores over num_prompts prompts with samples_per_prompt responses each."""

    num_prompts: int
    samples_per_prompt: int
    accuracy: float
    """avg@k: mean outcome of all responses, in [0, 1]; a verifier error counts as 0."""
    pass_at_k: dict[int, float]
    """k -> estimated chance that one of k responses is fully correct; k = 1, 2, 4, ... and all."""
    num_correct: int
    """Responses with outcome 1."""
    num_verifier_errors: int
    truncated_fraction: float
    mean_response_tokens: float
    accuracy_by_source: dict[str, float] = field(default_factory=dict)
    rollouts: tuple[Rollout, ...] = ()
    """Every response with its outcome (NaN after a verifier error), for reports."""

    def metrics(self) -> dict[str, float]:
        """The scores as flat names and numbers."""
        return {
            "num_prompts": float(self.num_prompts),
            "samples_per_prompt": float(self.samples_per_prompt),
            "accuracy": self.accuracy,
            **{f"pass_at_{k}": value for k, value in self.pass_at_k.items()},
            "num_correct": float(self.num_correct),
            "num_verifier_errors": float(self.num_verifier_errors),
            "truncated_fraction": self.truncated_fraction,
            "mean_response_tokens": self.mean_response_tokens,
            **{f"accuracy_by_source/{name}": value for name, value in self.accuracy_by_source.items()},
        }


def evaluation_sampling(
    config: EvaluationConfig, max_response_tokens: int, stop_token_ids: Sequence[int]
) -> SamplingParams:
    """How held-out responses are sampled."""
    return SamplingParams(
        max_response_tokens=max_response_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        stop_token_ids=tuple(stop_token_ids),
    )


def evaluate(
    engine: Engine,
    prompts: Sequence[Prompt],
    verifier: RolloutVerifier,
    sampling: SamplingParams,
    *,
    samples_per_prompt: int,
    stream_key: int,
) -> EvaluationResult:
    """Sample and verify every prompt. Collective; equal on every rank.

    An error of the verifier counts as wrong: leaving it out would reward answers that hang the verifier.

    Raises:
        ValueError: no prompts, or arguments that the engine refuses.
    """
    if not prompts:
        raise ValueError("nothing to evaluate: there are no prompts; set data.evaluation")
    rollouts = verifier(engine.generate(prompts, sampling, samples_per_prompt, stream_key))
    groups = split_groups(rollouts, samples_per_prompt)
    scored = [rollout.with_outcome(_score(rollout)) for rollout in rollouts]
    sizes = sorted({1 << power for power in range(samples_per_prompt.bit_length())} | {samples_per_prompt})
    return EvaluationResult(
        num_prompts=len(prompts),
        samples_per_prompt=samples_per_prompt,
        accuracy=math.fsum(rollout.outcome_reward for rollout in scored) / len(scored),
        pass_at_k={size: _mean_pass(groups, size) for size in sizes},
        num_correct=sum(rollout.outcome_reward == 1 for rollout in rollouts),
        num_verifier_errors=sum(math.isnan(rollout.outcome_reward) for rollout in rollouts),
        accuracy_by_source=accuracy_by_source(scored),
        rollouts=tuple(rollouts),
        **rollout_stats(rollouts),
    )


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Chance that k responses drawn without replacement from num_samples contain a correct one.

    Unbiased for the chance that k fresh responses do. Needs 1 <= k <= num_samples.
    """
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def _mean_pass(groups: Sequence[Group], k: int) -> float:
    passes = [
        pass_at_k(len(group), sum(rollout.outcome_reward == 1 for rollout in group), k) for group in groups
    ]
    return math.fsum(passes) / len(passes)


def _score(rollout: Rollout) -> float:
    return 0.0 if math.isnan(rollout.outcome_reward) else rollout.outcome_reward
