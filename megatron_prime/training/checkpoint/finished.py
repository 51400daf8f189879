"""Recognizes a run that has nothing left to do, before anything slow is imported or started."""

from pathlib import Path

from megatron_prime.config.run import PrimeConfig
from megatron_prime.training.checkpoint.folder import complete, read_run
from megatron_prime.training.checkpoint.manifest import faults, read_manifest, unlisted

MAX_BYTES_READ = 4 * 2**30
"""Size of checkpoints up to which checksums are compared; of larger ones only the sizes of files."""


def finished_note(config: PrimeConfig) -> str | None:
    """Return a line about a run whose last step is saved and exported; None for any other."""
    found = complete(config.run_dir / "checkpoints")
    if not found or config.checkpoint.resume == "never":
        return None
    try:
        step = read_run(found[-1])["step_index"]
        if not isinstance(step, int) or step < config.trainer.num_steps or not _is_sound(found[-1]):
            return None
    except (ValueError, KeyError):
        return None
    exported = config.run_dir / "hf"
    if config.checkpoint.export_hf and not (exported / "config.json").is_file():
        return None
    where = f"; its policy is in {exported}" if config.checkpoint.export_hf else ""
    return (
        f"the run in {config.run_dir} is finished: resuming after step {step} of {config.trainer.num_steps} leaves "
        f"nothing to do{where}. Raise trainer.num_steps to train on, or choose another run_dir"
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
