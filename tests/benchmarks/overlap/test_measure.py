"""Runs are set up as the rows say; whole runs are the benchmark's."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.overlap import measure


def test_an_interpreter_is_pinned_to_a_core(tmp_path):
    script = measure.pinned_python(Path(sys.executable), 0, tmp_path)
    program = "import os, sys; print(sorted(os.sched_getaffinity(0)), sys.argv[1:])"
    words = [script, "-c", program, "a b", "c"]
    printed = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    assert printed == "[0] ['a b', 'c']\n"


def test_a_commit_that_git_does_not_know_is_an_error(tmp_path):
    assert measure.package_folder("", tmp_path) == measure.ROOT
    with pytest.raises(RuntimeError, match="git archive 00000000 failed"):
        measure.package_folder("00000000", tmp_path)


def test_records_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "records.jsonl"
    assert measure.read(path) == []
    measure.append({"row": "rounds"}, path)
    measure.append({"row": "streaming", "load": [0.5, 1]}, path)
    assert measure.read(path) == [{"row": "rounds"}, {"row": "streaming", "load": [0.5, 1]}]
