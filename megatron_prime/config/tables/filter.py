"""The [filter] table: online prompt filtering."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from megatron_prime.config.section import NonNegative, Positive, Section, UnitInterval


class FilterConfig(Section):
    """Online prompt filtering (Algorithm 1, line 5)."""

    enabled: bool = True
    """Keep only groups of responses whose mean accuracy is in the range below; false keeps every group."""
    accuracy_min: UnitInterval = 0.2
    """Minimum mean accuracy of a kept group, inclusive."""
    accuracy_max: UnitInterval = 0.8
    """Maximum mean accuracy of a kept group, inclusive."""
    max_truncated_fraction: UnitInterval = 1.0
    """Maximum fraction of truncated responses in a kept group; 1, the default, drops none."""
    max_prompts_factor: Annotated[float, Field(ge=1)] = 7.0
    """Maximum number of prompts that a step samples to fill its batch, in multiples of prompts_per_step; 1 samples
    exactly prompts_per_step prompts, however many of them are dropped."""
    on_shortage: Literal["partial", "error"] = "partial"
    """Reaction when the batch is not full after so many prompts: partial trains on the kept groups; error stops the
    run."""
    overlong: Literal["keep", "mask", "penalize"] = "keep"
    """Treatment of responses truncated at max_response_tokens: keep trains on them like on others; mask leaves them out
    of both losses; penalize reduces the outcome of long responses gradually (soft overlong punishment)."""
    overlong_buffer_tokens: Positive | None = None
    """With penalize: tokens before the limit over which the penalty grows; default max_response_tokens / 5."""
    overlong_penalty: UnitInterval = 1.0
    """With penalize: amount subtracted from the outcome at the limit."""
    short_fraction: UnitInterval = 0.1
    """A step is short if it keeps less than this fraction of prompts_per_step."""
    max_short_steps: NonNegative = 10
    """Number of consecutive short steps that stop the run with an explanation; 0 never stops it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.accuracy_min > self.accuracy_max:
            raise ValueError(f"accuracy_min = {self.accuracy_min} exceeds accuracy_max = {self.accuracy_max}")
        # An option without an effect is refused, because its presence shows that the user expects one.
        if self.overlong_buffer_tokens is not None and self.overlong != "penalize":
            raise ValueError(
                f"overlong_buffer_tokens belongs to overlong = 'penalize', but it is {self.overlong!r}: set it, or "
                "leave the buffer out"
            )
        return self
