"""Check the folders that a command writes. Nothing is created here."""

import os
from collections.abc import Iterator
from pathlib import Path

from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.stages import RESUMABLE
from megatron_prime.config.tables.observability.rollout_log import ROLLOUTS
from megatron_prime.preflight.loggers import backend_faults


def output_faults(config: PrimeConfig, command: str) -> Iterator[str]:
    """Yield each reason why a command cannot write its results."""
    yield from _folder_faults("run_dir", config.run_dir)
    output_option = {"sft": "sft.output", "train_prm": "prm_training.output"}.get(command)
    output = config.stage(command).output if output_option else None
    if output is not None and output.exists():
        yield f"{output} exists already: remove it, or set {output_option} to another folder"
    elif output is not None and not output.is_relative_to(config.run_dir):
        yield from _folder_faults(str(output_option), output)
    if command in RESUMABLE:
        yield from backend_faults(config.logging.backends)
    if command == "train":
        yield from _rollout_log_faults(config)
    if command == "rollout":
        yield from _sampling_faults(config.run_dir)
    if command in RESUMABLE and config.checkpoint.resume == "never":
        yield from _checkpoint_faults(config.stage(command).folder)


def _folder_faults(option: str, folder: Path) -> Iterator[str]:
    # The folder may not exist yet: the nearest one above it that does must take new files.
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        yield f"{option} = {folder}: {existing} is not a folder"
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield f"{option} = {folder}: {existing} is not writable"


def _rollout_log_faults(config: PrimeConfig) -> Iterator[str]:
    folder = config.run_dir / ROLLOUTS
    if config.rollout_log.groups_per_step == 0 or not (folder.exists() or folder.is_symlink()):
        return
    if not folder.is_dir():
        yield f"{folder}, for the rollout log, is not a folder: remove it, or set rollout_log.groups_per_step = 0"
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield (
            f"{folder}, for the rollout log, is not writable: change its permissions, or set "
            "rollout_log.groups_per_step = 0"
        )


def _sampling_faults(run_dir: Path) -> Iterator[str]:
    # A log of sampling alone beside the metrics of a training run would look like a part of that run.
    for name in ("metrics.jsonl", "checkpoints", ROLLOUTS):
        if (run_dir / name).exists():
            yield f"run_dir = {run_dir} holds {name} of an earlier command: choose another run_dir for the rollouts"
            return


def _checkpoint_faults(run_dir: Path) -> Iterator[str]:
    checkpoints = sorted((run_dir / "checkpoints").glob("step_*/run.json"))
    if checkpoints:
        yield (
            f"checkpoint.resume = 'never', but run_dir = {run_dir} holds {checkpoints[-1].parent.name}: choose "
            "another run_dir, or remove its checkpoints"
        )
