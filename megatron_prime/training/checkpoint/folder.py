"""The files of run_dir/checkpoints: what is complete, what is left over, what is kept. Rank 0's business alone."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from megatron_prime.observability.durable import sync_path

LEFT_OVER = re.compile(r"\.step_\d{8}\.life(\d+)\.(partial|removed)")

ROOM = ".room"
ROOM_BYTES = 16 * 2**20


def name_of(step: int) -> str:
    """Folder of a step's checkpoint."""
    return f"step_{step:08d}"


def partial_of(final: Path, life: int) -> Path:
    """Where a life of the run writes what will become `final`; no other life writes there."""
    return final.with_name(f".{final.name}.life{life}.partial")


def complete(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step_*") if (path / "run.json").is_file())


def read_run(checkpoint: Path) -> dict[str, Any]:
    """run.json. Raises ValueError when the checkpoint has none that can be read."""
    try:
        run = json.loads((checkpoint / "run.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{checkpoint} is not a complete checkpoint: {error}") from error
    if not isinstance(run, dict):
        raise ValueError(f"{checkpoint} is not a complete checkpoint: run.json does not hold an object")
    return run


def clear_leftovers(folder: Path, life: int) -> None:
    """Remove what interrupted saves and removals of this and earlier lives left."""
    for stale in folder.glob(".step_*"):
        match = LEFT_OVER.fullmatch(stale.name)
        if match and int(match[1]) <= life:
            shutil.rmtree(stale)


def make_partial(partial: Path, roles: list[str], life: int) -> None:
    """Make the folders of a save, with room held for its small files."""
    clear_leftovers(partial.parent, life)
    partial.mkdir(parents=True)
    for role in roles:
        (partial / role).mkdir()
    hold_room(partial)


def hold_room(partial: Path) -> None:
    """Take disk space for the small files that are written last. Raises OSError when there is none."""
    try:
        with (partial / ROOM).open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, ROOM_BYTES)
    except OSError as error:
        free = shutil.disk_usage(partial).free / 2**20
        raise OSError(
            f"the checkpoint could not be written to {partial} ({free:.0f} MiB are free there): {error.strerror}. "
            "The checkpoints before it are whole: mend the file system and start again"
        ) from error


def release_room(partial: Path) -> None:
    """Give the space back, for the small files to take."""
    (partial / ROOM).unlink(missing_ok=True)


def publish(partial: Path, final: Path) -> None:
    """Make a written checkpoint the run's: all of it is on disk before it gets its name."""
    sync_tree(partial)
    partial.rename(final)
    sync_path(final.parent)


def prune(folder: Path, keep_last: int, keep_best: int, life: int) -> None:
    """Remove all but the last ones and those of the highest held-out accuracy (the newer of two equal ones)."""
    found = complete(folder)
    by_accuracy = []
    for path in found:
        accuracy = read_run(path).get("accuracy")
        if accuracy is not None:
            by_accuracy.append((accuracy, path))
    kept = {*found[-keep_last:], *(path for _, path in sorted(by_accuracy, reverse=True)[:keep_best])}
    for old in found:
        if old not in kept:
            # Out of sight first: a kill in the middle of the removal must not leave half a checkpoint behind.
            doomed = old.with_name(f".{old.name}.life{life}.removed")
            old.rename(doomed)
            shutil.rmtree(doomed)


def set_aside(checkpoint: Path) -> Path:
    """Take a damaged checkpoint out of the way without removing it; returns where it is now."""
    aside = checkpoint.with_name(f"damaged_{checkpoint.name}")
    number = 1
    while aside.exists():
        number += 1
        aside = checkpoint.with_name(f"damaged_{checkpoint.name}_{number}")
    checkpoint.rename(aside)
    sync_path(checkpoint.parent)
    return aside


def sync_tree(folder: Path) -> None:
    """Wait until a folder and all below it are on disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            sync_path(Path(root, name))
        sync_path(Path(root))
