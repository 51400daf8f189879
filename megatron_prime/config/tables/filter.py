"""[filter]: online prompt filtering."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from megatron_prime.config.section import NonNegative, Positive, Section, UnitInterval


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
