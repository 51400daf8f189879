"""Jobs go on after a kill without doing finished work again, side by side, and never mix two jobs."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from megatron_prime.conversion.units import Job, Unit, manifest_of, run_job
from megatron_prime.observability.progress import Progress
from megatron_prime.training.checkpoint.manifest import read_manifest

QUIET = Progress(enabled=False)


def write(text, log, path):
    """A unit's work: one file, and a line in the log."""
    path.write_text(text)
    with Path(log).open("a") as file:
        file.write(f"{path.name}\n")
    return {"length": len(text)}


def write_and_die(text, log, path):
    write(text, log, path)
    os.kill(os.getpid(), signal.SIGKILL)


def broken(path):
    raise ValueError("no such tensor")


def finish(folder, done):
    (folder / "total").write_text(str(sum(unit.result["length"] for unit in done.values())))
    manifest_of(folder, done)


def job(tmp_path, **work):
    units = [
        Unit(f"part/{name}", work.get(name, partial(write, name * 3, str(tmp_path / "log"))), 1)
        for name in ("a", "bb", "ccc")
    ]
    return Job(tmp_path / "out", {"source": "here"}, units, finish)


def die_in_the_middle(folder):
    tmp_path = Path(folder)
    run_job(job(tmp_path, bb=partial(write_and_die, "half", str(tmp_path / "log"))), 1, QUIET)


@pytest.fixture
def killed(tmp_path):
    code = f"from tests.conversion import test_units; test_units.die_in_the_middle({str(tmp_path)!r})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    return tmp_path


def test_the_same_job_goes_on_after_a_kill(killed):
    run_job(job(killed), 1, QUIET)
    assert (killed / "log").read_text().split() == ["a", "bb", "bb", "ccc"], "a was not written again"
    out = killed / "out"
    assert [(out / "part" / name).read_text() for name in ("a", "bb", "ccc")] == ["aaa", "bb" * 3, "ccc" * 3]
    assert (out / "total").read_text() == "18"
    assert set(read_manifest(out)) == {"part/a", "part/bb", "part/ccc", "total"}
    assert sorted(path.name for path in killed.iterdir()) == ["log", "out"]


def test_a_finished_file_that_was_changed_is_written_again(killed):
    (killed / ".out.partial" / "part" / "a").write_text("aab")
    run_job(job(killed), 1, QUIET)
    assert (killed / "log").read_text().split() == ["a", "bb", "a", "bb", "ccc"]
    assert (killed / "out" / "part" / "a").read_text() == "aaa"


def test_another_job_starts_anew(killed):
    other = job(killed)
    run_job(Job(other.output, {"source": "there"}, other.units, finish), 1, QUIET)
    assert (killed / "log").read_text().split() == ["a", "bb", "a", "bb", "ccc"]


def test_workers_share_the_units(tmp_path):
    run_job(job(tmp_path), 2, QUIET)
    assert sorted((tmp_path / "log").read_text().split()) == ["a", "bb", "ccc"]
    assert (tmp_path / "out" / "total").read_text() == "18"


def test_a_fault_is_raised_and_finished_files_are_kept(tmp_path):
    with pytest.raises(ValueError, match="no such tensor"):
        run_job(job(tmp_path, ccc=broken), 1, QUIET)
    run_job(job(tmp_path), 1, QUIET)
    assert (tmp_path / "log").read_text().split() == ["a", "bb", "ccc"]


def test_two_at_a_time_and_an_existing_output_are_refused(tmp_path):
    code = (
        "import fcntl, sys, time\n"
        f"file = open({str(tmp_path / '.out.job' / 'lock')!r}, 'w')\n"
        "fcntl.flock(file, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)"
    )
    (tmp_path / ".out.job").mkdir()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        try:
            with pytest.raises(ValueError, match="another process works by"):
                run_job(job(tmp_path), 1, QUIET)
        finally:
            holder.kill()
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        run_job(job(tmp_path), 1, QUIET)
