"""[evaluation]: held-out prompts and benchmarks."""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from megatron_prime.config.section import NonNegative, NonNegativeFloat, Positive, Section, UserPath

BenchmarkName = Literal[
    "aime24", "amc", "math500", "minerva", "olympiadbench", "leetcode", "livecodebench", "gsm8k"
]
"""Benchmarks whose format and settings are known; see evaluation/benchmarks.py."""

CODE_BENCHMARKS = ("leetcode", "livecodebench")
"""Their answers are programs."""


class BenchmarkConfig(Section):
    """One benchmark: a file, and what differs from the benchmark's usual settings."""

    path: UserPath
    """Its jsonl, parquet or csv file."""
    format: BenchmarkName | None = None
    """Which benchmark it is; default: the key of this table."""
    samples_per_prompt: Positive | None = None
    """Responses a problem; default as the paper has it (16 for AIME and AMC, else 1)."""
    temperature: NonNegativeFloat | None = None
    """0 is greedy; default as the paper has it (0.3 for AIME and AMC, else 0)."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_prompts: Positive | None = None
    """Use the first so many problems only."""


class EvaluationConfig(Section):
    """Sampling on the held-out prompts."""

    samples_per_prompt: Positive = 1
    """Responses a prompt; the accuracy reported is their mean."""
    temperature: NonNegativeFloat = 1.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_prompts: Positive | None = None
    """Use the first so many prompts only."""
    benchmarks: dict[str, BenchmarkConfig] = Field(default={})
    """Benchmarks by name, evaluated besides data.evaluation: [evaluation.benchmarks.aime24] with a path."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Level of the confidence intervals."""
    num_resamples: NonNegative = 1000
    """Bootstrap resamples, over problems, behind the intervals; 0 leaves them out."""
    save_responses: bool = True
    """`eval` writes every response with its outcome to run_dir/responses, which `eval-prm` reads."""

    @model_validator(mode="after")
    def _check_benchmarks(self) -> Self:
        for name, benchmark in self.benchmarks.items():
            if benchmark.format is None and name not in get_args(BenchmarkName):
                known = ", ".join(get_args(BenchmarkName))
                raise ValueError(f"benchmarks.{name} needs a format, because its name is none of {known}")
        return self
