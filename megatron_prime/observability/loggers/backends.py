"""The loggers by their names in logging.backends. Their packages are imported only where they are used."""

from collections.abc import Callable, Sequence

from megatron_prime.config.tables.observability.logging import Backend
from megatron_prime.observability.jsonl import Record
from megatron_prime.observability.loggers.background import BackgroundLogger
from megatron_prime.observability.loggers.protocol import Logger, RunInfo


def open_loggers(
    backends: Sequence[Backend],
    info: RunInfo,
    resume_step: int,
    history: Callable[[], Sequence[Record]],
    warn: Callable[[str], None],
) -> list[Logger]:
    """Start the loggers of a run. Services start in the background, and their failures are warnings.

    Args:
        backends: names from logging.backends.
        info: what to show of the run.
        resume_step: first step that this attempt logs.
        history: returns the records of metrics.jsonl before resume_step.
        warn: receives one line for each backend that fails.
    """

    def wandb_logger() -> Logger:
        from megatron_prime.observability.loggers.weights_and_biases import WandbLogger

        return WandbLogger(info, resume_step, history)

    def mlflow_logger() -> Logger:
        from megatron_prime.observability.loggers.mlflow_runs import MlflowLogger

        return MlflowLogger(info, resume_step, history)

    services = {"wandb": wandb_logger, "mlflow": mlflow_logger}
    loggers: list[Logger] = []
    for name in backends:
        if name != "tensorboard":
            loggers.append(BackgroundLogger(name, services[name], warn))
            continue
        from megatron_prime.observability.loggers.tensorboard import TensorBoardLogger

        try:
            loggers.append(TensorBoardLogger(info, resume_step))
        except OSError as error:
            warn(f"logging.backends: tensorboard is left out: {error}")
    return loggers
