"""The [evaluation] table: held-out prompts and benchmarks."""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from megatron_prime.config.section import NonNegative, NonNegativeFloat, Positive, Section, UserPath

BenchmarkName = Literal[
    "aime24", "amc", "math500", "minerva", "olympiadbench", "leetcode", "livecodebench", "gsm8k"
]
"""Benchmarks of known format and settings; see data/benchmarks.py."""

CODE_BENCHMARKS = ("leetcode", "livecodebench")
"""Benchmarks whose answers are programs."""


class BenchmarkConfig(Section):
    """One benchmark: its file, and settings that differ from the benchmark's usual ones."""

    path: UserPath
    """jsonl, parquet or csv file of the problems."""
    format: BenchmarkName | None = None
    """The benchmark whose format and settings apply; default the key of this table."""
    samples_per_prompt: Positive | None = None
    """Responses per problem; default as in the paper (16 for AIME and AMC, else 1)."""
    temperature: NonNegativeFloat | None = None
    """Sampling temperature, 0 for greedy decoding; default as in the paper (0.3 for AIME and AMC, else 0)."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Probability mass of nucleus sampling; 1 samples from the whole distribution."""
    max_prompts: Positive | None = None
    """Number of problems to use, from the start of the file; default all."""


class EvaluationConfig(Section):
    """Sampling on the held-out prompts of data.evaluation and on benchmarks."""

    samples_per_prompt: Positive = 1
    """Responses per prompt; the reported accuracy is their mean."""
    temperature: NonNegativeFloat = 1.0
    """Sampling temperature; 0 for greedy decoding."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Probability mass of nucleus sampling; 1 samples from the whole distribution."""
    max_prompts: Positive | None = None
    """Number of prompts to use, from the start of the data; default all."""
    benchmarks: dict[str, BenchmarkConfig] = Field(default={})
    """Benchmarks by name, evaluated in addition to data.evaluation: [evaluation.benchmarks.aime24] with a path."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Level of the confidence intervals."""
    num_resamples: NonNegative = 1000
    """Bootstrap resamples of the problems for the confidence intervals; 0 reports no intervals."""
    save_responses: bool = True
    """`eval` writes every response with its outcome to run_dir/responses, which `eval-prm` reads."""

    @model_validator(mode="after")
    def _check_benchmarks(self) -> Self:
        for name, benchmark in self.benchmarks.items():
            if benchmark.format is None and name not in get_args(BenchmarkName):
                known = ", ".join(get_args(BenchmarkName))
                raise ValueError(f"benchmarks.{name} needs a format, because its name is none of {known}")
        return self
