import json
import math
import subprocess
import sys

import pytest

from megatron_prime.observability.jsonl import JsonlHistory, read_history


def record(path, steps, resume_step=0):
    with JsonlHistory(path, resume_step) as history:
        for step in steps:
            history.log(step, {"policy/loss": 1 / (step + 3)})


def test_each_step_is_one_object_with_exact_floats(tmp_path):
    path = tmp_path / "deep" / "metrics.jsonl"
    record(path, [0, 1, 5])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": step, "policy/loss": 1 / (step + 3)} for step in (0, 1, 5)
    ]


@pytest.mark.parametrize("torn", [b"", b"{", b'{"step": 4, "policy/lo', b'{"step": 4}'])
def test_a_resumed_history_equals_an_unbroken_one(tmp_path, torn):
    unbroken, resumed = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    record(unbroken, range(6))
    record(resumed, range(4))
    with resumed.open("ab") as file:
        file.write(torn)
    record(resumed, range(2, 6), resume_step=2)
    assert resumed.read_bytes() == unbroken.read_bytes()
    assert list(tmp_path.glob(".*")) == []


def test_a_fresh_run_starts_an_empty_history(tmp_path):
    path = tmp_path / "metrics.jsonl"
    record(path, range(3))
    record(path, [])
    assert path.read_bytes() == b""


def test_a_killed_process_loses_nothing_that_was_logged(tmp_path):
    path = tmp_path / "metrics.jsonl"
    code = (
        "import os, signal; from pathlib import Path\n"
        "from megatron_prime.observability.jsonl import JsonlHistory\n"
        f"history = JsonlHistory(Path({str(path)!r}))\n"
        "for step in range(3): history.log(step, {'policy/loss': 0.5})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == -9
    assert [entry["step"] for entry in read_history(path)] == [0, 1, 2]


def test_non_finite_values_are_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with JsonlHistory(path) as history:
        history.log(0, {"a/nan": math.nan, "a/inf": -math.inf, "a/x": 0.0})
    assert read_history(path) == [{"step": 0, "a/nan": None, "a/inf": None, "a/x": 0.0}]
    with JsonlHistory(path, resume_step=1):
        pass
    assert len(read_history(path)) == 1


@pytest.mark.parametrize("resume_step", [0, 3])
def test_steps_must_increase(tmp_path, resume_step):
    path = tmp_path / "metrics.jsonl"
    record(path, range(3))
    with JsonlHistory(path, resume_step) as history:
        history.log(3, {})
        with pytest.raises(AssertionError, match="step 3 was logged after step 3"):
            history.log(3, {})


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"loss": 1}', '{"step": "1"}', ""])
def test_damage_before_the_end_is_reported_with_its_line(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 0}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match="line 2 is not"):
        JsonlHistory(path, resume_step=2)


def test_a_missing_file_is_an_empty_history(tmp_path):
    assert read_history(tmp_path / "absent.jsonl") == []
