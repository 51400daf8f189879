"""Conversions split into output files: they run in parallel, resume after a kill, and are published atomically.

.output.partial/     the folder while it is being written
.output.job/         identity of the conversion (job.json), and size, SHA-256 and result of each finished file
output/              the complete folder, renamed from .output.partial/ after everything is written and checked

Running the same conversion again resumes it.
"""

import fcntl
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_prime.observability.durable import replace_file, sync_path
from megatron_prime.observability.progress import Progress
from megatron_prime.parallel.lifeline import die_with_parent
from megatron_prime.training.checkpoint.folder import sync_tree
from megatron_prime.training.checkpoint.manifest import SUMS_SUFFIX, Entry, entry_of, write_manifest

STATE_FILE = "job.json"


@dataclass(frozen=True)
class FileTask:
    """One output file to write."""

    path: str
    """Path relative to the output folder."""
    work: Callable[[Path], Any]
    """Writes the file at the given path, checks it against its source, and returns a JSON value. Must be picklable."""
    size: int
    """Approximate size in bytes, for progress reports."""


@dataclass(frozen=True)
class FinishedFile:
    """An output file that is complete."""

    entry: Entry
    """Size and checksum."""
    result: Any
    """Return value of the task's `work`."""


@dataclass(frozen=True)
class Conversion:
    """An output folder to write."""

    output: Path
    identity: Mapping[str, Any]
    """Source and options. Partial output is resumed only if it has an equal identity."""
    tasks: Sequence[FileTask]
    finish: Callable[[Path, Mapping[str, FinishedFile]], None]
    """Writes the remaining small files, given the folder and the finished files by path."""


def run_conversion(conversion: Conversion, num_workers: int, progress: Progress) -> None:
    """Write the output folder of a conversion.

    Any exception of a task is passed on. Finished files are kept, and the same call resumes with them.

    Raises:
        ValueError: the output exists, or another process is writing it.
        RuntimeError: a worker process was killed.
    """
    if conversion.output.exists():
        raise ValueError(f"{conversion.output} exists already: choose another path or remove it first")
    conversion.output.parent.mkdir(parents=True, exist_ok=True)
    partial = conversion.output.with_name(f".{conversion.output.name}.partial")
    state_folder = conversion.output.with_name(f".{conversion.output.name}.job")
    state_folder.mkdir(exist_ok=True)
    with _locked(state_folder):
        # The round trip through JSON makes the identity comparable with the stored one, in which tuples are lists.
        _prepare(partial, state_folder, json.loads(json.dumps(conversion.identity)), progress)
        conversion.finish(partial, _run_tasks(partial, state_folder, conversion.tasks, num_workers, progress))
        # All data must be on disk before the folder gets its final name.
        sync_tree(partial)
        partial.rename(conversion.output)
        sync_path(conversion.output.parent)
        shutil.rmtree(state_folder)


def write_folder_manifest(folder: Path, finished: Mapping[str, FinishedFile]) -> None:
    """Write manifest.json of a folder, with the checksums already known for its large files.

    Args:
        folder: the folder.
        finished: path relative to `folder` -> finished file.
    """
    (folder / f"units{SUMS_SUFFIX}").write_text(
        json.dumps({name: file.entry for name, file in finished.items()})
    )
    write_manifest(folder)


@contextmanager
def _locked(state_folder: Path) -> Iterator[None]:
    with (state_folder / "lock").open("w") as file:
        try:
            # The kernel releases the lock when the process ends, even if it is killed.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process holds {state_folder}: wait for it to finish, or stop it"
            ) from None
        yield


def _prepare(partial: Path, state_folder: Path, identity: Mapping[str, Any], progress: Progress) -> None:
    """Keep the finished files of a conversion with an equal identity, and remove those of any other."""
    try:
        found = json.loads((state_folder / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found == identity and partial.is_dir():
        progress.line(f"resuming in {partial}")
        return
    if found is not None:
        progress.line(
            f"{partial} belongs to another conversion (a different source or options): starting from scratch"
        )
    shutil.rmtree(partial, ignore_errors=True)
    # The lock in the same folder stays, because this process holds it.
    for path in state_folder.glob("*.json"):
        path.unlink()
    partial.mkdir()
    replace_file(state_folder / STATE_FILE, json.dumps(identity, indent=1))


def _run_tasks(
    partial: Path, state_folder: Path, tasks: Sequence[FileTask], num_workers: int, progress: Progress
) -> dict[str, FinishedFile]:
    results: dict[str, FinishedFile] = {}
    mib = [max(1, task.size >> 20) for task in tasks]
    with progress.phase("MiB", sum(mib)) as advance:
        if num_workers == 1:
            for task, size in zip(tasks, mib, strict=True):
                results[task.path] = _run_task(partial, state_folder, task)
                advance(size)
            return results
        # Forking is unsafe, because torch has started threads.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_workers, context, die_with_parent, (os.getpid(),)) as pool:
            running = {
                pool.submit(_run_task, partial, state_folder, task): (task, size)
                for task, size in zip(tasks, mib, strict=True)
            }
            try:
                for future in as_completed(running):
                    task, size = running[future]
                    results[task.path] = future.result()
                    advance(size)
            except BrokenProcessPool as error:
                raise RuntimeError(
                    "a worker process was killed, perhaps because memory ran out: run the command again with fewer "
                    "--workers; finished files are kept"
                ) from error
            except BaseException:
                # Tasks that have not started are cancelled; running ones finish and are kept.
                pool.shutdown(cancel_futures=True)
                raise
    return results


def _run_task(partial: Path, state_folder: Path, task: FileTask) -> FinishedFile:
    path = partial / task.path
    record = state_folder / f"{task.path.replace('/', '~')}.json"
    if record.is_file() and path.is_file():
        finished = FinishedFile(**json.loads(record.read_text(encoding="utf-8")))
        # The file may have been changed since, or its record may be newer than its data after a power failure.
        if entry_of(path) == finished.entry:
            return finished
    path.parent.mkdir(parents=True, exist_ok=True)
    result = json.loads(json.dumps(task.work(path)))
    # The record below claims that the file is complete, so the data has to be on disk first.
    with path.open("rb") as file:
        os.fsync(file.fileno())
    finished = FinishedFile(entry_of(path), result)
    replace_file(record, json.dumps({"entry": finished.entry, "result": finished.result}))
    return finished
