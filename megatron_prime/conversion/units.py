"""Work that is cut into output files: in parallel, resumable after a kill, and published whole.

output/              appears by a rename, when everything is written and checked
.output.partial/     until then
.output.job/         what is being written (job.json), and of each finished file its size, its SHA-256 and what was
                     learnt while writing it

The same command goes on from there.
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

JOB = "job.json"


@dataclass(frozen=True)
class Unit:
    """One file to write."""

    path: str
    """Below the output folder."""
    work: Callable[[Path], Any]
    """Writes the file, checks it against its source, and returns JSON; a function that another process can import."""
    size: int
    """About so many bytes."""


@dataclass(frozen=True)
class Done:
    """A finished file."""

    entry: Entry
    result: Any
    """What its unit's work returned."""


@dataclass(frozen=True)
class Job:
    """A folder to write."""

    output: Path
    identity: Mapping[str, Any]
    """Source and options; leftovers of an equal one are gone on with."""
    units: Sequence[Unit]
    finish: Callable[[Path, Mapping[str, Done]], None]
    """Writes the small files into the folder; given the finished files by path."""


def run_job(job: Job, num_workers: int, progress: Progress) -> None:
    """Write the job's folder.

    Raises ValueError when the output exists, when another process writes it, or what a unit's work raises: files that
    are finished stay, and the same call goes on with them.
    """
    if job.output.exists():
        raise ValueError(f"{job.output} exists already: choose another path or remove it first")
    job.output.parent.mkdir(parents=True, exist_ok=True)
    partial = job.output.with_name(f".{job.output.name}.partial")
    book = job.output.with_name(f".{job.output.name}.job")
    book.mkdir(exist_ok=True)
    with _locked(book):
        _take_over(partial, book, json.loads(json.dumps(job.identity)), progress)
        job.finish(partial, _run_units(partial, book, job.units, num_workers, progress))
        sync_tree(partial)
        partial.rename(job.output)
        sync_path(job.output.parent)
        shutil.rmtree(book)


def manifest_of(folder: Path, done: Mapping[str, Done]) -> None:
    """Write manifest.json of a folder whose large files, named below it, are finished units."""
    (folder / f"units{SUMS_SUFFIX}").write_text(json.dumps({name: unit.entry for name, unit in done.items()}))
    write_manifest(folder)


@contextmanager
def _locked(book: Path) -> Iterator[None]:
    with (book / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process works by {book}: wait for it, or stop it") from None
        yield


def _take_over(partial: Path, book: Path, identity: Mapping[str, Any], progress: Progress) -> None:
    """Keep the finished files of an equal job; clear everything else away."""
    try:
        found = json.loads((book / JOB).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found == identity and partial.is_dir():
        progress.line(f"going on in {partial}")
        return
    if found is not None:
        progress.line(f"{partial} was left by another job (another source, or other options): starting anew")
    shutil.rmtree(partial, ignore_errors=True)
    for path in book.glob("*.json"):
        path.unlink()
    partial.mkdir()
    replace_file(book / JOB, json.dumps(identity, indent=1))


def _run_units(
    partial: Path, book: Path, units: Sequence[Unit], num_workers: int, progress: Progress
) -> dict[str, Done]:
    results: dict[str, Done] = {}
    mib = [max(1, unit.size >> 20) for unit in units]
    with progress.phase("MiB", sum(mib)) as advance:
        if num_workers == 1:
            for unit, size in zip(units, mib, strict=True):
                results[unit.path] = _run_unit(partial, book, unit)
                advance(size)
            return results
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_workers, context, die_with_parent, (os.getpid(),)) as pool:
            running = {
                pool.submit(_run_unit, partial, book, unit): (unit, size)
                for unit, size in zip(units, mib, strict=True)
            }
            try:
                for future in as_completed(running):
                    unit, size = running[future]
                    results[unit.path] = future.result()
                    advance(size)
            except BrokenProcessPool as error:
                raise RuntimeError(
                    "a worker was ended from outside, perhaps for want of memory: start again with fewer --workers; "
                    "files that are finished are kept"
                ) from error
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return results


def _run_unit(partial: Path, book: Path, unit: Unit) -> Done:
    path = partial / unit.path
    record = book / f"{unit.path.replace('/', '~')}.json"
    if record.is_file() and path.is_file():
        done = Done(**json.loads(record.read_text(encoding="utf-8")))
        if entry_of(path) == done.entry:
            return done
    path.parent.mkdir(parents=True, exist_ok=True)
    result = json.loads(json.dumps(unit.work(path)))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    done = Done(entry_of(path), result)
    replace_file(record, json.dumps({"entry": done.entry, "result": done.result}))
    return done
