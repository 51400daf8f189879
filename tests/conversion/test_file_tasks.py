"""Conversions resume after a kill without repeating finished files, run in parallel, and are never mixed up."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from megatron_prime.conversion.file_tasks import Conversion, FileTask, run_conversion, write_folder_manifest
from megatron_prime.observability.progress import Progress
from megatron_prime.training.checkpoint.manifest import read_manifest

QUIET = Progress(enabled=False)


def write(text, log, path):
    """The work of a task: write a file, and a line to a log."""
    path.write_text(text)
    with Path(log).open("a") as file:
        file.write(f"{path.name}\n")
    return {"length": len(text)}


def write_and_die(text, log, path):
    write(text, log, path)
    os.kill(os.getpid(), signal.SIGKILL)


def fail(path):
    raise ValueError("no such tensor")


def finish(folder, finished):
    (folder / "total").write_text(str(sum(file.result["length"] for file in finished.values())))
    write_folder_manifest(folder, finished)


def conversion(tmp_path, **work):
    tasks = [
        FileTask(f"part/{name}", work.get(name, partial(write, name * 3, str(tmp_path / "log"))), 1)
        for name in ("a", "bb", "ccc")
    ]
    return Conversion(tmp_path / "out", {"source": "here"}, tasks, finish)


def die_in_the_middle(folder):
    tmp_path = Path(folder)
    run_conversion(conversion(tmp_path, bb=partial(write_and_die, "half", str(tmp_path / "log"))), 1, QUIET)


@pytest.fixture
def killed(tmp_path):
    code = (
        f"from tests.conversion import test_file_tasks; test_file_tasks.die_in_the_middle({str(tmp_path)!r})"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    return tmp_path


def test_the_same_conversion_resumes_after_a_kill(killed):
    run_conversion(conversion(killed), 1, QUIET)
    assert (killed / "log").read_text().split() == ["a", "bb", "bb", "ccc"], (
        "the finished file must not be written again"
    )
    out = killed / "out"
    assert [(out / "part" / name).read_text() for name in ("a", "bb", "ccc")] == ["aaa", "bb" * 3, "ccc" * 3]
    assert (out / "total").read_text() == "18"
    assert set(read_manifest(out)) == {"part/a", "part/bb", "part/ccc", "total"}
    assert sorted(path.name for path in killed.iterdir()) == ["log", "out"]


def test_a_finished_file_that_was_changed_is_written_again(killed):
    (killed / ".out.partial" / "part" / "a").write_text("aab")
    run_conversion(conversion(killed), 1, QUIET)
    assert (killed / "log").read_text().split() == ["a", "bb", "a", "bb", "ccc"]
    assert (killed / "out" / "part" / "a").read_text() == "aaa"


def test_a_conversion_with_another_identity_starts_from_scratch(killed):
    other = conversion(killed)
    run_conversion(Conversion(other.output, {"source": "there"}, other.tasks, finish), 1, QUIET)
    assert (killed / "log").read_text().split() == ["a", "bb", "a", "bb", "ccc"]


def test_worker_processes_share_the_tasks(tmp_path):
    run_conversion(conversion(tmp_path), 2, QUIET)
    assert sorted((tmp_path / "log").read_text().split()) == ["a", "bb", "ccc"]
    assert (tmp_path / "out" / "total").read_text() == "18"


def test_an_error_is_raised_and_finished_files_are_kept(tmp_path):
    with pytest.raises(ValueError, match="no such tensor"):
        run_conversion(conversion(tmp_path, ccc=fail), 1, QUIET)
    run_conversion(conversion(tmp_path), 1, QUIET)
    assert (tmp_path / "log").read_text().split() == ["a", "bb", "ccc"]


def test_a_concurrent_conversion_and_an_existing_output_are_refused(tmp_path):
    code = (
        "import fcntl, sys, time\n"
        f"file = open({str(tmp_path / '.out.job' / 'lock')!r}, 'w')\n"
        "fcntl.flock(file, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)"
    )
    (tmp_path / ".out.job").mkdir()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        try:
            with pytest.raises(ValueError, match="another process holds"):
                run_conversion(conversion(tmp_path), 1, QUIET)
        finally:
            holder.kill()
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        run_conversion(conversion(tmp_path), 1, QUIET)
