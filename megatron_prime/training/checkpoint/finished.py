"""Recognizes a run that has nothing left to do, before anything slow is imported or started."""

from pathlib import Path

from megatron_prime.config.run import PrimeConfig
from megatron_prime.training.checkpoint.folder import complete, owed_metrics, read_run
from megatron_prime.training.checkpoint.manifest import faults, read_manifest, unlisted

MAX_BYTES_READ = 4 * 2**30
"""Size of checkpoints up to which checksums are compared; of larger ones only the sizes of files."""


def finished_note(config: PrimeConfig, command: str = "train") -> str | None:
    """Return a line about a resumable command whose last step is saved, evaluated and exported, else None."""
    stage = config.stage(command)
    folder, num_steps = stage.folder, stage.num_steps
    found = complete(folder / "checkpoints")
    if not found or config.checkpoint.resume == "never":
        return None
    try:
        run = read_run(found[-1])
        step = run["step_index"]
        if not isinstance(step, int) or step < num_steps or not _is_sound(found[-1]):
            return None
        if not stage.is_offline and config.has_evaluation and owed_metrics(found[-1], run) is not None:
            return None
    except (ValueError, KeyError):
        return None
    if stage.output is not None and not (stage.output / "config.json").is_file():
        return None
    where = f"; its {stage.role} is in {stage.output}" if stage.output is not None else ""
    advice = (
        "Choose another run_dir"
        if stage.is_offline
        else "Raise trainer.num_steps to train on, or choose another run_dir"
    )
    return (
        f"the run in {folder} is finished: resuming after step {step} of {num_steps} leaves nothing to do{where}. "
        f"{advice}"
    )


def _is_sound(checkpoint: Path) -> bool:
    entries = read_manifest(checkpoint)
    if unlisted(checkpoint, entries):
        return False
    if sum(entry["bytes"] for entry in entries.values()) <= MAX_BYTES_READ:
        return not faults(checkpoint, entries)
    return all(
        (checkpoint / name).is_file() and (checkpoint / name).stat().st_size == entry["bytes"]
        for name, entry in entries.items()
    )
