"""The knobs of what a run reads and judges itself by: data, the online filter, evaluation."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from megatron_prime.config.section import NonNegativeFloat, Positive, Section, UnitInterval, UserPath


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

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.accuracy_min > self.accuracy_max:
            raise ValueError(f"accuracy_min = {self.accuracy_min} exceeds accuracy_max = {self.accuracy_max}")
        return self


class EvaluationConfig(Section):
    """Sampling on the held-out prompts."""

    samples_per_prompt: Positive = 1
    """Responses a prompt; the accuracy reported is their mean."""
    temperature: NonNegativeFloat = 1.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_prompts: Positive | None = None
    """Use the first so many prompts only."""
