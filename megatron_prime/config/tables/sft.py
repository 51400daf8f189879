"""[sft]: supervised warm-up of the policy."""

from typing import Self

from pydantic import Field, model_validator

from megatron_prime.config.optimizer import OptimizerConfig, warmup_fault
from megatron_prime.config.section import NonNegativeFloat, Positive, PositiveFloat, UserPath
from megatron_prime.config.tables.data import LayoutName


class SFTConfig(OptimizerConfig):
    """Supervised warm-up of the policy."""

    lr: NonNegativeFloat = 1e-5
    weight_decay: NonNegativeFloat = 0.01
    data: tuple[UserPath, ...] = ()
    """jsonl or parquet files of prompts with responses."""
    response_field: str = "response"
    """Column with the response text."""
    num_steps: Positive = 1000
    batch_size: Positive = 64
    """Responses in one optimizer step, over all ranks."""
    output: UserPath | None = None
    """Where the HF checkpoint goes; default run_dir/sft."""
    messages_field: str | None = None
    """Column with whole conversations, the assistant's message last; replaces data.prompt_field and response_field."""
    layout: LayoutName | None = None
    """Where the prompt stands in a row; default data.layout."""
    weights: dict[str, PositiveFloat] = Field(default={})
    """Shares by data source or file, as data.weights has them for the training prompts."""

    @model_validator(mode="after")
    def _check_warmup(self) -> Self:
        if self.lr_warmup_steps >= self.num_steps:
            raise ValueError(warmup_fault(self.lr_warmup_steps, "num_steps", self.num_steps))
        return self
