"""Private folders, and atomic replacement of small text files: no reader and no crash ever finds a partial file."""

import os
from pathlib import Path


def replace_file(path: Path, text: str) -> None:
    """Replace a file atomically: write a temporary file, fsync it, and rename it."""
    # The temporary file is in the same folder, because a rename is atomic only within a file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_path(path.parent)  # without it, the rename may be lost in a power failure


def make_private(folder: Path) -> None:
    """Create a folder and its missing parents for this user alone. Folders that exist keep their modes."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)


def sync_path(path: Path) -> None:
    """Wait until the content of a file, or the directory entries of a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
