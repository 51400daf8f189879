"""Private folders, and files that survive crashes and full disks: small ones replaced as a whole, and logs.

Neither a reader nor a crash ever finds a partial file, and no error comes without the file's name.
"""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of file systems without locks."""


def replace_file(path: Path, content: str | bytes) -> None:
    """Replace a file atomically: write a temporary file, fsync it, and rename it."""
    # The temporary file is in the same folder, because a rename is atomic only within a file system. Processes of other
    # nodes may replace the same file of a shared folder at the same time.
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise named(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)
    sync_path(path.parent)  # without it, the rename may be lost in a power failure


@contextlib.contextmanager
def exclusive(lock_file: Path) -> Iterator[None]:
    """Admit one process at a time, for as long as it takes to read a file and to replace it.

    The lock is on a file of its own, which stays: the file that is replaced is another one afterwards. File systems
    without locks admit everyone.
    """
    with lock_file.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield


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


def named(error: OSError, path: Path) -> OSError:
    """Return the error with the name of the file; the system gives none when a write fails, as on a full disk."""
    return type(error)(error.errno, f"cannot be written: {error.strerror}", str(path))


class AppendedFile:
    """A file that only grows; what is appended is on disk when `append` returns.

    After an error, the file keeps what it could not write, and writes it with the next append. A part that did reach
    the disk is removed first, so that the file is as if there had been no error.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._size = self._file.seek(0, os.SEEK_END)
        self._unwritten = b""

    def append(self, data: bytes) -> None:
        """Write what earlier calls left, then `data`. Raises OSError with the path if not all of it is on disk."""
        is_retry = bool(self._unwritten)
        self._unwritten += data
        try:
            if is_retry:
                self._file.truncate(self._size)
            written = 0
            while written < len(self._unwritten):
                written += self._file.write(self._unwritten[written:])
            # A node failure must not lose what a checkpoint saved later relies on.
            os.fsync(self._file.fileno())
        except OSError as error:
            raise named(error, self.path) from error
        self._size += written
        self._unwritten = b""

    def close(self) -> None:
        """Close the file, after a last attempt to write what is left; a second call does nothing."""
        if not self._file.closed:
            try:
                if self._unwritten:
                    self.append(b"")
            finally:
                self._file.close()
