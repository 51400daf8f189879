"""The types of data files. Standard library only, so that a configuration can be checked without any reader."""

import re
from pathlib import Path

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
"""Ends of the names of data files; compressed files are not read."""
_COMPRESSED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz", ".zip", ".lz4")
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip, as spreadsheets are",
}
_OTHER_STARTS = {
    b"version https://git-lfs": "is a Git LFS pointer and not the data: run `git lfs pull`",
    b"ARROW1": "is an Arrow file: write it as parquet",
    b"PAR1": "is a parquet file: its name must end in .parquet",
}
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_HEAD_BYTES = 1024
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/(?![^/]*\.(?:jsonl|json|csv|parquet)$)[A-Za-z0-9][\w.-]*")


def data_file_fault(path: Path) -> str | None:
    """Return why a path cannot be a data file, as the end of a sentence about it; None when it can."""
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir() if entry.suffix in SUFFIXES)
        files = f": name its files one by one, such as {path / inside[0]}" if inside else ""
        return f"is a directory, not a file (working directory: {Path.cwd()}){files}"
    if not path.is_file():
        name = _HUB_NAME.fullmatch(str(path))
        download = (
            f": a data set of the Hub comes by `hf download --repo-type dataset {name[0]} --local-dir {name[0]}`; "
            "then name its files"
            if name
            else ""
        )
        return f"does not exist (working directory: {Path.cwd()}){download}"
    if path.suffix not in SUFFIXES:
        unpack = "unpack it, and " if path.suffix in _COMPRESSED_SUFFIXES else ""
        return f"has unknown type {path.suffix!r}: {unpack}use {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
    try:
        with path.open("rb") as file:
            return _content_fault(path.suffix, file.read(_HEAD_BYTES))
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _content_fault(suffix: str, head: bytes) -> str | None:
    """Return why the first bytes of a file are not those of its type."""
    for start, kind in _COMPRESSED.items():
        if head.startswith(start):
            return f"is compressed ({kind}): unpack it"
    for start, fault in _OTHER_STARTS.items():
        if head.startswith(start) and not (start == b"PAR1" and suffix == ".parquet"):
            return fault
    # Text in UTF-16 has a zero byte beside each ASCII character.
    if suffix != ".parquet" and (head.startswith(_UTF16_MARKS) or 4 * head.count(0) > len(head)):
        return "is not UTF-8 text (it looks like UTF-16): save it as UTF-8"
    return None
