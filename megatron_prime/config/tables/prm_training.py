"""The [prm_training] table: training of the PRM on saved responses."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from megatron_prime.config.optimizer import OptimizerConfig, warmup_fault
from megatron_prime.config.section import NonNegative, NonNegativeFloat, Positive, UserPath


class PRMTrainingConfig(OptimizerConfig):
    """Training of the PRM by `train-prm`, on saved responses with outcomes and without a policy.

    The objective, beta and the scored tokens are those of [prm], so that a run that starts from the result agrees.
    """

    lr: NonNegativeFloat = 1e-6
    grad_clip: NonNegativeFloat = 10.0
    responses: tuple[UserPath, ...] = ()
    """Responses with their outcomes: run_dirs with a rollout log, folders of such a log, or single files of its format,
    which `eval` writes to run_dir/responses too; or jsonl, json or csv files with the text of a response and its
    outcome_reward in each row, read by [data] and [sft] as demonstrations are; none by default."""
    held_out_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the prompts whose responses are never trained on, but scored before the first and after the last step;
    0 trains on all."""
    eval_every: NonNegative = 0
    """Steps between measurements on the held-out responses; 0 measures at the start and at the end only."""
    num_steps: Positive = 100
    """Number of optimizer steps."""
    prompts_per_step: Positive = 64
    """Prompts per optimizer step, over all ranks, each with all its responses of one sampling step."""
    output: UserPath | None = None
    """Folder for the HF checkpoint, which prm.path of a run can name; default run_dir/prm."""

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        if self.lr_warmup_steps >= self.num_steps:
            raise ValueError(warmup_fault(self.lr_warmup_steps, "num_steps", self.num_steps))
        if self.num_minibatches != 1 or self.num_epochs != 1:
            raise ValueError(
                "num_minibatches and num_epochs must be 1, because each step is one update on responses of its own: "
                "change prompts_per_step and num_steps"
            )
        return self
