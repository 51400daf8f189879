"""Accuracy of the policy on held-out prompts and benchmarks: avg@k and pass@k, with confidence intervals.

pass@k is the unbiased estimator of Chen et al. 2021 (arXiv 2107.03374); intervals are bootstrapped over problems.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from megatron_prime.config.run import PrimeConfig
from megatron_prime.evaluation.confidence import (
    BootstrapSettings,
    Intervals,
    bootstrap_interval,
    interval_metrics,
)
from megatron_prime.rollout.collection_stats import accuracy_by_source, rollout_stats
from megatron_prime.rollout.engine import Engine
from megatron_prime.rollout.episode import Environments
from megatron_prime.rollout.group_filter import Group, split_groups
from megatron_prime.rollout.verification import RolloutVerifier
from megatron_prime.types import Prompt, Rollout, SamplingParams


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Scores of one prompt set, num_prompts prompts with samples_per_prompt responses each."""

    num_prompts: int
    samples_per_prompt: int
    accuracy: float
    """avg@k: mean outcome of all responses, in [0, 1]; a verifier error counts as 0."""
    pass_at_k: dict[int, float]
    """k -> estimated probability that at least one of k responses is fully correct, for k = 1, 2, 4, ... and
    samples_per_prompt."""
    num_correct: int
    """Number of responses with outcome 1."""
    num_verifier_errors: int
    truncated_fraction: float
    mean_response_tokens: float
    accuracy_by_source: dict[str, float] = field(default_factory=dict)
    rollouts: tuple[Rollout, ...] = ()
    """All responses with their outcomes (NaN after a verifier error), ordered by prompt and sample."""
    intervals: Intervals = field(default_factory=dict)
    """Confidence intervals of "accuracy" and each "pass_at_<k>"; empty when none were requested."""

    def metrics(self) -> dict[str, float]:
        """Return the scores as a flat mapping from metric name to value."""
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
            **interval_metrics(self.intervals),
        }


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """Results of several prompt sets: the held-out prompts (named "") and benchmarks (by name)."""

    results: dict[str, EvaluationResult]
    """Prompt set -> result; never empty."""

    @property
    def accuracy(self) -> float:
        """Accuracy on the held-out prompts, or the mean of the benchmarks without them; it ranks checkpoints."""
        return self.results[""].accuracy if "" in self.results else self.benchmark_average

    @property
    def benchmark_average(self) -> float:
        """Unweighted mean of the benchmarks' accuracies, as papers report it; NaN without benchmarks."""
        # The held-out prompts have the empty name and are not a benchmark.
        accuracies = [result.accuracy for name, result in self.results.items() if name]
        return math.fsum(accuracies) / len(accuracies) if accuracies else math.nan

    def metrics(self) -> dict[str, float]:
        """Return all metrics, those of a benchmark as `<benchmark>/<metric>`."""
        # With held-out prompts, their own metrics contain `accuracy`.
        flat = {} if "" in self.results else {"accuracy": self.accuracy}
        for name, result in self.results.items():
            flat |= {f"{name}/{key}" if name else key: value for key, value in result.metrics().items()}
        if any(self.results):
            flat["benchmark_average"] = self.benchmark_average
        return flat

    def summary(self) -> str:
        """Return the accuracies in one line of text."""
        parts = [
            f"{name + ' ' if name else ''}{result.accuracy:.3f} "
            f"({result.num_prompts} prompts x {result.samples_per_prompt})"
            for name, result in self.results.items()
        ]
        return ", ".join(parts)


def evaluation_sampling(config: PrimeConfig, stop_token_ids: Sequence[int]) -> SamplingParams:
    """Return the sampling parameters of held-out prompts."""
    return SamplingParams(
        max_response_tokens=config.rollout.max_response_tokens,
        temperature=config.evaluation.temperature,
        top_p=config.evaluation.top_p,
        stop_token_ids=tuple(stop_token_ids),
        max_turns=config.environment.max_turns,
        max_turn_tokens=config.environment.max_turn_tokens,
    )


def evaluate(
    engine: Engine,
    prompts: Sequence[Prompt],
    verifier: RolloutVerifier,
    sampling: SamplingParams,
    *,
    samples_per_prompt: int,
    stream_key: int,
    bootstrap: BootstrapSettings | None = None,
    whole_only: bool = False,
    environments: Environments | None = None,
) -> EvaluationResult:
    """Sample responses to every prompt and verify them. Collective; the result is equal on every rank.

    A verifier error counts as a wrong answer: leaving it out would reward responses that make the verifier hang.

    Args:
        engine: holds the weights to evaluate.
        prompts: not empty.
        verifier: computes the outcome of each response.
        sampling: sampling parameters of all prompts.
        samples_per_prompt: responses per prompt.
        stream_key: selects the random numbers; see `stream_keys`.
        bootstrap: options of the confidence intervals; None computes none.
        whole_only: count a partial outcome (a program that passes some of its tests) as wrong, as benchmarks do.
        environments: reply to the turns of the responses; None for responses of one turn.

    Raises:
        ValueError: there are no prompts, or the engine refuses the arguments.
    """
    if not prompts:
        raise ValueError("nothing to evaluate: there are no prompts; set data.evaluation")
    # The rollouts in the result keep NaN after a verifier error; only the scores below count it as 0.
    rollouts = verifier(engine.generate(prompts, sampling, samples_per_prompt, stream_key, environments))
    groups = split_groups(rollouts, samples_per_prompt)
    # Scores replace only the outcomes used for the means; `rollouts` are saved with what the verifier returned.
    scored = [rollout.with_outcome(_score(rollout, whole_only)) for rollout in rollouts]
    # k = 1, 2, 4, ... and the number of samples itself.
    sizes = sorted({1 << power for power in range(samples_per_prompt.bit_length())} | {samples_per_prompt})
    passes = {size: _passes(groups, size) for size in sizes}
    return EvaluationResult(
        num_prompts=len(prompts),
        samples_per_prompt=samples_per_prompt,
        accuracy=math.fsum(rollout.outcome_reward for rollout in scored) / len(scored),
        pass_at_k={size: math.fsum(values) / len(values) for size, values in passes.items()},
        num_correct=sum(rollout.outcome_reward == 1 for rollout in rollouts),
        num_verifier_errors=sum(math.isnan(rollout.outcome_reward) for rollout in rollouts),
        accuracy_by_source=accuracy_by_source(scored),
        rollouts=tuple(rollouts),
        intervals=_intervals(split_groups(scored, samples_per_prompt), passes, bootstrap),
        **rollout_stats(rollouts),
    )


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Return 1 - C(num_samples - num_correct, k) / C(num_samples, k), for 1 <= k <= num_samples.

    This is the probability that k responses drawn without replacement contain a correct one: an unbiased estimate of
    the probability that one of k new responses is correct.
    """
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def _passes(groups: Sequence[Group], k: int) -> list[float]:
    return [
        pass_at_k(len(group), sum(rollout.outcome_reward == 1 for rollout in group), k) for group in groups
    ]


def _intervals(
    groups: Sequence[Group], passes: Mapping[int, Sequence[float]], settings: BootstrapSettings | None
) -> dict[str, tuple[float, float]]:
    if settings is None or settings.num_resamples == 0:
        return {}
    means = [math.fsum(rollout.outcome_reward for rollout in group) / len(group) for group in groups]
    values = {"accuracy": means} | {f"pass_at_{k}": values for k, values in passes.items()}
    return {
        name: bootstrap_interval(
            values_of_problems, settings.confidence, settings.num_resamples, settings.seed
        )
        for name, values_of_problems in values.items()
    }


def _score(rollout: Rollout, whole_only: bool) -> float:
    outcome = rollout.outcome_reward
    return 0.0 if math.isnan(outcome) or (whole_only and outcome < 1) else outcome
