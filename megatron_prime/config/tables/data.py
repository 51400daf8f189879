"""The knobs of what a run reads and judges itself by: data, the online filter, evaluation."""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from megatron_prime.config.section import (
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Section,
    UnitInterval,
    UserPath,
)

LayoutName = Literal["columns", "eurus", "gsm8k", "math", "olympiadbench", "leetcode", "livecodebench"]
"""How the rows of a file say what the problem and its answer are; see data/layouts.py."""
BenchmarkName = Literal[
    "aime24", "amc", "math500", "minerva", "olympiadbench", "leetcode", "livecodebench", "gsm8k"
]
"""Benchmarks whose format and settings are known; see evaluation/benchmarks.py."""
CODE_BENCHMARKS = ("leetcode", "livecodebench")
"""Their answers are programs."""


class DataConfig(Section):
    """Prompts to train and evaluate on."""

    train: tuple[UserPath, ...] = ()
    """jsonl or parquet files with training prompts."""
    evaluation: tuple[UserPath, ...] = ()
    """jsonl or parquet files with held-out prompts."""
    prompt_field: str = "prompt"
    """Column with a string or a list of chat messages; dots descend."""
    answer_field: str = "answer"
    """Column with the ground truth; dots descend."""
    source_field: str | None = None
    """Column that names where a row comes from, for metrics."""
    chat_template: Literal["auto", "always", "never"] = "auto"
    """auto applies the tokenizer's template to lists of messages only."""
    shuffle: bool = True
    """Visit the prompts of each epoch in a seeded random order."""
    ability_field: str | None = None
    """Column that names what a row asks for, such as math or code; verifiers may go by it."""
    layout: LayoutName = "columns"
    """Where problem and answer stand in a row: columns goes by the *_field settings, the others know their columns."""
    system_prompt: str | None = None
    """System message put before prompts that have none; makes chat messages of text."""
    instruction: str | None = None
    """Text put after the question, such as how to give the answer; "" also takes that of the benchmarks away."""
    chat_template_file: UserPath | None = None
    """Jinja file used instead of the tokenizer's own chat template."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """A row that does not fit stops the run, or is left out, counted and logged."""
    dedup: Literal["none", "exact", "normalized"] = "none"
    """Leave prompts out that came before: same text, or the same but for case, white space and Unicode forms."""
    weights: dict[str, PositiveFloat] = Field(default={})
    """Shares by data source or file, {numina = 3, "code.parquet" = 1}; empty visits every prompt once an epoch."""


class FilterConfig(Section):
    """Online prompt filtering (Algorithm 1, line 5)."""

    enabled: bool = True
    accuracy_min: UnitInterval = 0.2
    """Lowest mean accuracy of a kept group, inclusive."""
    accuracy_max: UnitInterval = 0.8
    """Highest mean accuracy of a kept group, inclusive."""
    max_truncated_fraction: UnitInterval = 1.0
    """Drop a group with a larger truncated share."""
    max_rounds: Positive = 4
    """Sampling rounds a step may take to fill its batch."""
    on_shortage: Literal["partial", "error"] = "partial"
    """When the rounds are used up: train on what was kept, or stop with an explanation."""
    oversample: Annotated[float, Field(ge=1)] = 1.0
    """Largest first round, in multiples of prompts_per_step; the share kept lately says how much is needed."""
    overlong: Literal["keep", "mask", "penalize"] = "keep"
    """Responses cut at max_response_tokens: trained on like others, left out of both losses, or penalised (softly)."""
    overlong_buffer_tokens: Positive | None = None
    """penalize: tokens before the limit over which the penalty grows; default a fifth of max_response_tokens."""
    overlong_penalty: UnitInterval = 1.0
    """penalize: what the outcome loses at the limit."""
    short_fraction: UnitInterval = 0.1
    """A step is short when it keeps less than this share of prompts_per_step."""
    max_short_steps: NonNegative = 10
    """So many short steps in a row stop the run with an explanation; 0 never does."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.accuracy_min > self.accuracy_max:
            raise ValueError(f"accuracy_min = {self.accuracy_min} exceeds accuracy_max = {self.accuracy_max}")
        if self.overlong_buffer_tokens is not None and self.overlong != "penalize":
            raise ValueError(
                f"overlong_buffer_tokens belongs to overlong = 'penalize', but it is {self.overlong!r}: set it, or "
                "leave the buffer out"
            )
        return self


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


class PRMEvaluationConfig(Section):
    """What `eval-prm` judges the PRM by: prm.path against reference.path."""

    responses: tuple[UserPath, ...] = ()
    """Files that `eval` wrote below run_dir/responses: for best-of-N, weighted vote and pairs of a group."""
    processbench: dict[str, UserPath] = Field(default={})
    """ProcessBench by split: {gsm8k = "gsm8k.jsonl", math = "math.jsonl"}."""
    tune_on: str = "gsm8k"
    """The split that the threshold on step scores is chosen on."""
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    """A step whose sigmoid(score) is below this is the first wrong one; default: the best on tune_on."""
    pairs: tuple[UserPath, ...] = ()
    """jsonl, parquet or csv files of prompt, chosen, rejected."""

    @model_validator(mode="after")
    def _check_threshold(self) -> Self:
        if self.processbench and self.threshold is None and self.tune_on not in self.processbench:
            raise ValueError(
                f"processbench has no split {self.tune_on!r} to choose the threshold on: add it, name another split by "
                "tune_on, or give the threshold"
            )
        return self
