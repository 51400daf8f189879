"""Accuracy of the policy on held-out prompts and benchmarks: avg@k and pass@k, with confidence intervals.

pass@k is the unbiased estimator of Chen et al. 2021 (arXiv 2107.03374), intervals are bootstrapped over problems.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from megatron_prime.config.tables.evaluation import EvaluationConfig
from megatron_prime.evaluation.confidence import bootstrap_interval
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
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Confidence intervals of "accuracy" and each "pass_at_<k>"; empty when none were asked for."""

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
            **{
                f"{name}_ci_{side}": bound
                for name, bounds in self.intervals.items()
                for side, bound in zip(("low", "high"), bounds, strict=True)
            },
        }


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """Results of the held-out prompts, under the name "", and of benchmarks under theirs."""

    results: dict[str, EvaluationResult]
    """Not empty."""

    @property
    def accuracy(self) -> float:
        """The number that checkpoints are compared by: of the held-out prompts; without any, the benchmarks' mean."""
        return self.results[""].accuracy if "" in self.results else self.benchmark_average

    @property
    def benchmark_average(self) -> float:
        """Unweighted mean of the benchmarks' accuracies, as papers print it; NaN without benchmarks."""
        accuracies = [result.accuracy for name, result in self.results.items() if name]
        return math.fsum(accuracies) / len(accuracies) if accuracies else math.nan

    def metrics(self) -> dict[str, float]:
        """Flat names and numbers: those of the held-out prompts as they are, a benchmark's as <name>/<metric>."""
        flat = {} if "" in self.results else {"accuracy": self.accuracy}
        for name, result in self.results.items():
            flat |= {f"{name}/{key}" if name else key: value for key, value in result.metrics().items()}
        if any(self.results):
            flat["benchmark_average"] = self.benchmark_average
        return flat

    def summary(self) -> str:
        """Accuracies in one line."""
        parts = [
            f"{name + ' ' if name else ''}{result.accuracy:.3f} "
            f"({result.num_prompts} prompts x {result.samples_per_prompt})"
            for name, result in self.results.items()
        ]
        return ", ".join(parts)


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


@dataclass(frozen=True, slots=True)
class Intervals:
    """How confidence intervals are made."""

    confidence: float = 0.95
    num_resamples: int = 1000
    """0 makes none."""
    seed: int = 0


def evaluate(
    engine: Engine,
    prompts: Sequence[Prompt],
    verifier: RolloutVerifier,
    sampling: SamplingParams,
    *,
    samples_per_prompt: int,
    stream_key: int,
    intervals: Intervals | None = None,
    whole_only: bool = False,
) -> EvaluationResult:
    """Sample and verify every prompt. Collective; equal on every rank.

    An error of the verifier counts as wrong: leaving it out would reward answers that hang the verifier. With
    whole_only a partial outcome (some of a program's tests passed) counts as wrong too, as benchmarks count.

    Raises:
        ValueError: no prompts, or arguments that the engine refuses.
    """
    if not prompts:
        raise ValueError("nothing to evaluate: there are no prompts; set data.evaluation")
    rollouts = verifier(engine.generate(prompts, sampling, samples_per_prompt, stream_key))
    groups = split_groups(rollouts, samples_per_prompt)
    scored = [rollout.with_outcome(_score(rollout, whole_only)) for rollout in rollouts]
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
        intervals=_intervals(split_groups(scored, samples_per_prompt), passes, intervals),
        **rollout_stats(rollouts),
    )


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Chance that k responses drawn without replacement from num_samples contain a correct one.

    Unbiased for the chance that k fresh responses do. Needs 1 <= k <= num_samples.
    """
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def _passes(groups: Sequence[Group], k: int) -> list[float]:
    return [
        pass_at_k(len(group), sum(rollout.outcome_reward == 1 for rollout in group), k) for group in groups
    ]


def _intervals(
    groups: Sequence[Group], passes: Mapping[int, Sequence[float]], settings: Intervals | None
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
