"""The results of a save, on their way from the forked writer to the trainer."""

import os
import pickle
import queue
import tempfile
from typing import IO


class ForkResults:
    """Memory through which a forked writer hands its results to the trainer, once; a queue to Megatron.

    Megatron has one queue for all saves, from which two roles in progress at once would take each other's results. It
    belongs to a process of its own, which would import torch on every rank.
    """

    def __init__(self) -> None:
        self._file = _memory_file()

    def put(self, results: object) -> None:
        """Keep the results, in the writer. Unlike in a pipe, they may be of any size and wait for their reader."""
        pickle.dump(results, self._file)
        self._file.flush()

    def get_nowait(self) -> object:
        """Return the results, in the trainer, or raise queue.Empty if the writer ended before they were complete."""
        self._file.seek(0)
        try:
            return pickle.load(self._file)
        except (EOFError, pickle.UnpicklingError) as error:
            raise queue.Empty from error


def _memory_file() -> IO[bytes]:
    """Return a file that forks share and that no full disk affects."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("results"), "w+b")
    return tempfile.TemporaryFile()  # on other systems than Linux
