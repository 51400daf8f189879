"""The [logging] table: services that show the metrics of a run."""

from typing import Literal, Self

from pydantic import model_validator

from megatron_prime.config.section import NonNegative, Section

Backend = Literal["tensorboard", "wandb", "mlflow"]


class LoggingConfig(Section):
    """Services that show what every run writes to run_dir/metrics.jsonl. Only rank 0 logs."""

    backends: tuple[Backend, ...] = ("tensorboard",)
    """tensorboard writes event files to run_dir/tensorboard; wandb (Weights & Biases) and mlflow need their packages,
    megatron-prime[wandb] and megatron-prime[mlflow], and read the environment variables of their services."""
    project: str = "megatron-prime"
    """Project of Weights & Biases and experiment of MLflow that the run belongs to."""
    details_every: NonNegative = 10
    """Trainer steps between histograms and sample responses, starting with the first step; 0 logs scalars only."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        twice = sorted({name for name in self.backends if self.backends.count(name) > 1})
        if twice:
            raise ValueError(f"backends names {', '.join(twice)} more than once: name each once")
        if not self.project.strip():
            raise ValueError("project is empty: name a project")
        return self
