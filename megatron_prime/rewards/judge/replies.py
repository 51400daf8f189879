"""Replies of a judge on disk, one file each, by the content of the request.

Processes of several runs may share a folder. A file is written aside and renamed, so that no reader finds a part of it.
It is not synchronized to disk: what a power failure leaves is noticed by its checksum and asked for again, as is any
other damage.
"""

import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_REPLY_CHARS = 1 << 20
"""Characters of the longest reply that is kept."""
TRIMMED_FRACTION = 0.9
"""Fraction of the size that is left after the oldest replies were removed."""
NUM_SHARES = 16
"""A process looks at the size of the folder after writing this share of it."""
ABANDONED_S = 3600.0
"""Age of a temporary file of a process that must have been killed."""


class StoredReplies:
    """Replies in a folder of limited size.

    Args:
        folder: Is created if it does not exist.
        max_bytes: Size of all files together; each process may exceed it by a NUM_SHARES-th.

    Raises:
        ValueError: If the folder cannot be written to.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._num_written = 0
        """Bytes written since the size was looked at."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f"{secrets.token_hex(8)}.tmp"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ValueError(
                f"reward.judge.cache_dir = {folder} cannot be written to: {error.strerror}"
            ) from error
        self._trim()

    @staticmethod
    def key(content: Mapping[str, Any]) -> str:
        """Return the key of a request: a hash of everything that its reply depends on."""
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def get(self, key: str) -> str | None:
        """Return the reply under a key; None if there is none, or it is damaged."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                content = file.read(8 * MAX_REPLY_CHARS)
            record = json.loads(content)
            text = record["text"]
            if record["sum"] != _sum(key, text):
                return None
            os.utime(path)  # what is in use is not removed
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        return text

    def put(self, key: str, text: str) -> None:
        """Keep a reply. A full disk or a missing folder loses it, and nothing else."""
        if len(text) > MAX_REPLY_CHARS:
            return
        path = self._path(key)
        content = json.dumps({"text": text, "sum": _sum(key, text)}).encode()
        temporary = path.with_name(f"{path.stem}.{secrets.token_hex(8)}.tmp")
        try:
            path.parent.mkdir(exist_ok=True)
            temporary.write_bytes(content)
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            return
        self._num_written += len(content)
        if self._num_written * NUM_SHARES > self._max_bytes:
            self._trim()

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"

    def _trim(self) -> None:
        """Remove the replies that were not used for longest if all of them are too large, and abandoned files."""
        self._num_written = 0
        found: list[tuple[float, int, str]] = []
        now = time.time()
        for folder in self._entries(self._folder):
            for entry in self._entries(folder.path) if folder.is_dir() else ():
                with contextlib.suppress(OSError):
                    status = entry.stat()
                    if entry.name.endswith(".json"):
                        found.append((status.st_mtime, status.st_size, entry.path))
                    elif entry.name.endswith(".tmp") and now - status.st_mtime > ABANDONED_S:
                        os.unlink(entry.path)
        excess = sum(size for _, size, _ in found) - self._max_bytes
        if excess <= 0:
            return
        excess += int((1 - TRIMMED_FRACTION) * self._max_bytes)
        for _, size, path in sorted(found):
            if excess <= 0:
                break
            with contextlib.suppress(OSError):  # another process may have removed it
                os.unlink(path)
            excess -= size

    @staticmethod
    def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                return list(entries)
        except OSError:
            return []


def _sum(key: str, text: str) -> str:
    # With the key, a file under the name of another one is damaged too.
    return hashlib.sha256(f"{key} {text}".encode("utf-8", "surrogatepass")).hexdigest()
