"""The types of data files. Standard library only, so that a configuration can be checked without any reader."""

from pathlib import Path

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
"""Ends of the names of data files; compressed files are not read."""


def data_file_fault(path: Path) -> str | None:
    """Return why a path cannot be a data file, as the end of a sentence about it; None when it can."""
    if not path.is_file():
        what = "is a directory, not a file" if path.is_dir() else "does not exist"
        return f"{what} (working directory: {Path.cwd()})"
    if path.suffix not in SUFFIXES:
        return f"has unknown type {path.suffix!r}: use {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
    return None
