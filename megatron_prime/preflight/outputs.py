"""Check the folders that a command writes. Nothing is created here."""

import os
from collections.abc import Iterator
from pathlib import Path

from megatron_prime.config.run import PrimeConfig


def output_faults(config: PrimeConfig, command: str) -> Iterator[str]:
    """Yield each reason why a command cannot write its results."""
    yield from _run_dir_faults(config.run_dir)
    if command == "sft" and config.sft_output.exists():
        yield f"{config.sft_output} exists already: remove it, or set sft.output to another folder"
    if command in ("train", "sft") and config.checkpoint.resume == "never":
        yield from _checkpoint_faults(config.run_dir if command == "train" else config.sft_log)


def _run_dir_faults(run_dir: Path) -> Iterator[str]:
    # run_dir may not exist yet: the nearest folder above it that does must take new files.
    existing = run_dir.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        yield f"run_dir = {run_dir}: {existing} is not a folder"
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield f"run_dir = {run_dir}: {existing} is not writable"


def _checkpoint_faults(run_dir: Path) -> Iterator[str]:
    checkpoints = sorted((run_dir / "checkpoints").glob("step_*/run.json"))
    if checkpoints:
        yield (
            f"checkpoint.resume = 'never', but run_dir = {run_dir} holds {checkpoints[-1].parent.name}: choose "
            "another run_dir, or remove its checkpoints"
        )
