"""The [sft] table: supervised warm-up of the policy."""

from typing import Self

from pydantic import Field, model_validator

from megatron_prime.config.optimizer import OptimizerConfig, warmup_fault
from megatron_prime.config.section import NonNegative, NonNegativeFloat, Positive, PositiveFloat, UserPath
from megatron_prime.config.tables.data import LayoutName


class SFTConfig(OptimizerConfig):
    """Supervised fine-tuning of the policy by the command `sft`, before reinforcement learning."""

    lr: NonNegativeFloat = 1e-5
    weight_decay: NonNegativeFloat = 0.01
    data: tuple[UserPath, ...] = ()
    """jsonl, parquet or csv files of prompts with responses; none by default."""
    evaluation: tuple[UserPath, ...] = ()
    """Files of held-out demonstrations, like data, whose loss is measured before the first and after the last step."""
    eval_every: NonNegative = 0
    """Steps between measurements of the held-out loss; 0 measures at the start and at the end only."""
    response_field: str = "response"
    """Column with the text of the response."""
    num_steps: Positive = 1000
    """Number of optimizer steps."""
    batch_size: Positive = 64
    """Responses per optimizer step, over all ranks."""
    output: UserPath | None = None
    """Folder for the HF checkpoint; default run_dir/sft."""
    messages_field: str | None = None
    """Column with whole conversations, lists of messages or their JSON text, that end with the assistant's message; if
    set, it replaces data.prompt_field and response_field. All turns of the assistant behind the first message of the
    user are trained."""
    train_replies: bool = False
    """Whether the replies of users and tools between turns are trained, too. A PRM that scores replies compares it with
    the reference, which must be able to predict them: a model that has never seen any, such as a random one, needs it.
    """
    layout: LayoutName | None = None
    """Format of the rows; default data.layout."""
    weights: dict[str, PositiveFloat] = Field(default={})
    """Sampling weights by data source or file, like data.weights for the training prompts."""

    @model_validator(mode="after")
    def _check_warmup(self) -> Self:
        if self.lr_warmup_steps >= self.num_steps:
            raise ValueError(warmup_fault(self.lr_warmup_steps, "num_steps", self.num_steps))
        return self
