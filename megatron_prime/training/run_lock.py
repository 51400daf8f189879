"""One job a run_dir: two that write the same checkpoints and logs would destroy each other's."""

import fcntl
import os
import socket
from pathlib import Path
from typing import IO

from megatron_prime.parallel.collectives import broadcast_object
from megatron_prime.parallel.topology import Topology


class RunLock:
    """Holds run_dir/.lock on rank 0 until it is closed or the process ends, however it ends.

    The lock is the kernel's (flock), so a kill leaves none behind. File systems that do not support it across machines
    guard against a second job on the same machine only. Collective over all ranks; raises ValueError on every rank
    when another job holds the lock, and OSError when run_dir cannot be written.
    """

    def __init__(self, run_dir: Path, topology: Topology) -> None:
        self._file: IO[str] | None = None
        error: Exception | None = None
        if topology.rank == 0:
            try:
                self._file = _lock(run_dir)
            except (OSError, ValueError) as caught:
                error = caught
        error = broadcast_object(error, topology)
        if error is not None:
            raise error

    def close(self) -> None:
        """Let the next job in."""
        if self._file is not None:
            self._file.close()


def _lock(run_dir: Path) -> IO[str]:
    run_dir.mkdir(parents=True, exist_ok=True)
    file = (run_dir / ".lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another job"
        file.close()
        raise ValueError(
            f"{run_dir} is in use by {holder}: wait for it, end it, or choose another run_dir"
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file
