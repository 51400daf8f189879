"""The folder run_dir/checkpoints: its names, complete checkpoints, leftovers and removals. Rank 0 alone calls this."""

import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megatron_prime.observability.durable import make_private, replace_file, sync_path

LEFT_OVER = re.compile(r"\.step_\d{8}\.attempt(\d+)\.(partial|removed)")

NAME = re.compile(r"step_\d{8,}")
EVALUATED = "evaluated.json"
"""Written into a complete checkpoint, whose other files stay as they are, once an evaluation that it owes is done."""
RESERVED = ".reserved"
RESERVED_BYTES = 16 * 2**20


def name_of(step: int) -> str:
    """Return the name of a step's checkpoint."""
    return f"step_{step:08d}"


def partial_of(final: Path, attempt: int) -> Path:
    """Return where an attempt of the run writes what will become `final`; no other attempt writes there."""
    return final.with_name(f".{final.name}.attempt{attempt}.partial")


def complete(folder: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step_*") if (path / "run.json").is_file())


def all_named(folder: Path) -> list[tuple[Path, bool]]:
    """Return every entry with the name of a checkpoint, oldest first, and whether it can ever have been complete."""
    named = sorted(path for path in folder.glob("step_*") if NAME.fullmatch(path.name))
    return [(path, any((path / name).is_file() for name in ("run.json", "manifest.json"))) for path in named]


def read_run(checkpoint: Path) -> dict[str, Any]:
    """Return the contents of run.json. Raises ValueError when the checkpoint has none that can be read."""
    try:
        run = json.loads((checkpoint / "run.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{checkpoint} is not a complete checkpoint: {error}") from error
    if not isinstance(run, dict):
        raise ValueError(f"{checkpoint} is not a complete checkpoint: run.json does not hold an object")
    return run


def require_roles(checkpoint: Path, roles: Iterable[str]) -> dict[str, Any]:
    """Return the contents of run.json. Raises ValueError when the checkpoint lacks a role, or cannot be read."""
    run = read_run(checkpoint)
    if not isinstance(run.get("roles"), list):
        raise ValueError(f"{checkpoint} is not a complete checkpoint: run.json names no roles")
    missing = sorted(set(roles) - set(run["roles"]))
    if missing:
        raise ValueError(
            f"{checkpoint} has no {', '.join(missing)} (it has {', '.join(run['roles'])}): resume with the "
            "configuration that wrote it, or start a new run_dir"
        )
    return run


def owed_metrics(checkpoint: Path, run: dict[str, Any]) -> dict[str, float] | None:
    """Return the metrics of a checkpoint's step if its evaluation is still to be done; `run` is its run.json."""
    return None if (checkpoint / EVALUATED).is_file() else run.get("owed_metrics")


def note_evaluation(checkpoint: Path, accuracy: float | None) -> None:
    """Note that the evaluation which a checkpoint owes has been done."""
    replace_file(checkpoint / EVALUATED, json.dumps({"accuracy": accuracy}) + "\n")


def clear_leftovers(folder: Path, attempt: int) -> None:
    """Remove what interrupted saves and removals of this and earlier attempts left."""
    for stale in folder.glob(".step_*"):
        match = LEFT_OVER.fullmatch(stale.name)
        if match and int(match[1]) <= attempt:
            shutil.rmtree(stale)


def make_partial(partial: Path, roles: list[str], attempt: int) -> None:
    """Create the folders of a save, with disk space reserved for its small files."""
    clear_leftovers(partial.parent, attempt)
    make_private(partial.parent)
    partial.mkdir()
    for role in roles:
        (partial / role).mkdir()
    reserve_space(partial)


def reserve_space(partial: Path) -> None:
    """Reserve disk space for the small files that are written last. Raises OSError when there is none."""
    try:
        with (partial / RESERVED).open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, RESERVED_BYTES)
    except OSError as error:
        free = shutil.disk_usage(partial).free / 2**20
        raise OSError(
            f"the checkpoint could not be written to {partial} ({free:.0f} MiB are free there): {error.strerror}. "
            "Earlier checkpoints are complete: fix the file system and start again"
        ) from error


def release_space(partial: Path) -> None:
    """Give the reserved space back, for the small files to use."""
    (partial / RESERVED).unlink(missing_ok=True)


def publish(partial: Path, final: Path) -> None:
    """Give a written checkpoint its final name, after all of it has reached the disk.

    A folder that has this name already is set aside: the run would not have come here again if it were sound.
    """
    sync_tree(partial)
    if os.path.lexists(final):
        set_aside(final)
    partial.rename(final)
    sync_path(final.parent)


def prune(folder: Path, keep_last: int, keep_best: int, attempt: int) -> None:
    """Remove all checkpoints but the newest and those of the highest held-out accuracy (the newer of two equal)."""
    found = complete(folder)
    by_accuracy = [(accuracy, path) for path in found if (accuracy := _accuracy_of(path)) is not None]
    kept = {*found[-keep_last:], *(path for _, path in sorted(by_accuracy, reverse=True)[:keep_best])}
    for old in found:
        if old not in kept:
            # Rename first: a kill during the removal must not leave half a checkpoint under a valid name.
            doomed = old.with_name(f".{old.name}.attempt{attempt}.removed")
            old.rename(doomed)
            shutil.rmtree(doomed)


def _accuracy_of(checkpoint: Path) -> float | None:
    try:
        accuracy = read_run(checkpoint).get("accuracy")
        if (checkpoint / EVALUATED).is_file():
            accuracy = json.loads((checkpoint / EVALUATED).read_text())["accuracy"]
    except (OSError, ValueError, KeyError, TypeError):
        return (
            None  # An older checkpoint that cannot be read any more must not end a run that has a newer one.
        )
    return accuracy if isinstance(accuracy, int | float) else None


def set_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint so that it is passed over; return where it is now."""
    aside = checkpoint.with_name(f"damaged_{checkpoint.name}")
    number = 1
    while aside.exists():
        number += 1
        aside = checkpoint.with_name(f"damaged_{checkpoint.name}_{number}")
    checkpoint.rename(aside)
    sync_path(checkpoint.parent)
    return aside


def sync_tree(folder: Path) -> None:
    """Wait until a folder and everything below it are on disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            sync_path(Path(root, name))
        sync_path(Path(root))
