"""At most one job per run_dir: two jobs would overwrite each other's checkpoints and logs.

Two mechanisms keep a second job out. A kernel lock (flock) refuses to start beside a running job. A lease, in
run_dir/lease.json, names the attempt of the run that may write. Each new attempt takes it over with the next number,
and an older one that still runs (its node was given up, the job was requeued, the file system's locks do not reach
across machines) notices before it writes anything.
"""

import contextlib
import fcntl
import json
import os
import socket
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from megatron_prime.observability.durable import NO_LOCKS, exclusive, make_private, replace_file
from megatron_prime.parallel.collectives import broadcast_object
from megatron_prime.parallel.topology import Topology

LEASE_LOCK = ".lease.lock"
"""Locked to read the lease and act on it. On file systems without locks, the lease is the only guard."""


class FencedError(ValueError):
    """A later attempt of the run has taken run_dir over: this process must not write there any more."""


@dataclass(frozen=True)
class Lease:
    """The attempt of a run that may write."""

    attempt: int
    """Number of the attempt, from 1."""
    token: str
    """Unique to the attempt, which distinguishes two that raced for a number."""
    holder: str
    """Process and host, for messages."""
    job: str = ""
    """Slurm's job id; empty elsewhere."""
    restart_count: int = 0
    """Number of times that Slurm has requeued the job."""
    lock: str = ".lock"
    """File in run_dir that the attempt holds locked."""

    @staticmethod
    def read(run_dir: Path) -> "Lease | None":
        """Return the lease of run_dir; None where no attempt began, or the file cannot be parsed."""
        try:
            return Lease(**json.loads((run_dir / "lease.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


class RunLock:
    """Holds run_dir on rank 0 until it is closed or the process ends in any way. Collective over all ranks.

    A job that Slurm requeued (same job id, higher restart count) takes run_dir over from its former attempt even when
    that one still holds the lock.

    Raises:
        ValueError: another job holds run_dir; raised on every rank.
        OSError: run_dir cannot be written; raised on every rank.
    """

    def __init__(self, run_dir: Path, topology: Topology) -> None:
        self._run_dir = run_dir
        self._file: IO[str] | None = None
        self._lease: Lease | None = None
        error: Exception | None = None
        if topology.rank == 0:
            try:
                self._lease, self._file = acquire(run_dir)
            except (OSError, ValueError) as caught:
                error = caught
        error, lease = broadcast_object((error, self._lease), topology)
        if error is not None:
            raise error
        assert lease is not None
        self.attempt = lease.attempt
        """Number of this attempt, from 1."""

    @contextlib.contextmanager
    def fence(self) -> Iterator[None]:
        """Guard the block, in which rank 0 writes to run_dir: no later attempt can begin before it ends.

        Raises:
            FencedError: a later attempt has begun; the block does not run.
        """
        assert self._lease is not None, "rank 0 alone writes to run_dir"
        with exclusive(self._run_dir / LEASE_LOCK):
            now = Lease.read(self._run_dir)
            if now is None or now.token != self._lease.token:
                by = (
                    "it has no lease any more"
                    if now is None
                    else f"{now.holder} (attempt {now.attempt}) has it now"
                )
                raise FencedError(
                    f"this is attempt {self._lease.attempt} of the run in {self._run_dir}, and {by}: "
                    "nothing more is written from here. If that other job is the one to keep, there is nothing to fix"
                )
            yield

    def close(self) -> None:
        """Release the lock, so that the next job can start."""
        if self._file is not None:
            self._file.close()


def acquire(run_dir: Path) -> tuple[Lease, IO[str]]:
    """Begin a new attempt of the run; return its lease, and the locked file, which must stay open.

    Raises:
        ValueError: another job holds run_dir.
    """
    make_private(run_dir)
    job, restart_count = os.environ.get("SLURM_JOB_ID", ""), int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    with exclusive(run_dir / LEASE_LOCK):
        before = Lease.read(run_dir)
        name = before.lock if before else ".lock"
        attempt = before.attempt + 1 if before else 1
        is_same_job = bool(job) and before is not None and before.job == job
        if is_same_job and before is not None and before.restart_count > restart_count:
            raise ValueError(
                f"{run_dir} belongs to {before.holder}, a later attempt (restart {before.restart_count}) of this same "
                f"job {job} (restart {restart_count}): this one must not go on"
            )
        file = _try_lock(run_dir / name)
        if file is None and is_same_job and before is not None and before.restart_count < restart_count:
            # The former attempt is an orphan that may still hold its lock: leave it the lock, and take over the lease.
            name = f".lock.{attempt}"
            file = _try_lock(run_dir / name)
        if file is None:
            holder = before.holder if before else "another job"
            raise ValueError(
                f"{run_dir} is in use by {holder}: wait for it, end it, or choose another run_dir"
            )
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        lease = Lease(attempt, uuid.uuid4().hex, holder, job, restart_count, name)
        replace_file(run_dir / "lease.json", json.dumps(asdict(lease), indent=1) + "\n")
    # Otherwise a forked child would keep the lock after this process is killed.
    os.register_at_fork(after_in_child=file.close)
    return lease, file


def _try_lock(path: Path) -> IO[str] | None:
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return file
