"""The summary has each error once, with the ranks that printed it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools.run_summary import format_ranks, meaning, summarize

TOOL = Path(__file__).parents[2] / "tools" / "run_summary.py"

ERROR = "megatron-prime, rank {}: ValueError: no file\n"


def test_an_error_of_several_ranks_is_reported_once():
    logs = {rank: f"step 3/9  s 1.0\n{ERROR.format(rank)}" for rank in range(4)} | {4: "", 5: "step 2/9\n"}
    assert summarize(logs, 1) == [
        "ended with exit code 1: the run failed",
        "steps finished: 3 of 9",
        "ranks 0-3: megatron-prime, rank N: ValueError: no file",
        "rank 4 wrote nothing",
    ]


def test_a_finished_run_has_no_errors():
    assert summarize({0: "megatron-prime: a warning\nstep 9/9\n"}, 0) == [
        "ended with exit code 0: the run is finished",
        "steps finished: 9 of 9",
    ]


def test_memory_that_ran_out_is_the_cause_whatever_follows():
    advice = "megatron-prime, rank 3: out of GPU memory: split the model"
    kill = "slurmstepd-n1: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks"
    logs = {
        3: f"step 1/9\nmegatron-prime, rank 3: OutOfMemoryError: CUDA\n{advice}\ntorch.Error: later\n",
        4: f"{kill}\n",
    }
    assert summarize(logs, 71) == [
        "ended with exit code 71: out of memory",
        "steps finished: 1 of 9",
        "rank 3: megatron-prime, rank N: out of GPU memory: split the model",
        f"rank 4: {kill}",
    ]


@pytest.mark.parametrize(
    ("code", "text"), [(75, "asked to stop"), (137, "signal 9"), (2, "configuration"), (3, "unknown")]
)
def test_codes_have_meanings(code, text):
    assert text in meaning(code)


def test_ranks_are_formatted_as_ranges():
    assert format_ranks([7, 1, 2, 3]) == "ranks 1-3, 7"
    assert format_ranks([5]) == "rank 5"


def test_the_command_reads_a_folder(tmp_path):
    (tmp_path / "rank-10.log").write_text("Traceback\nRuntimeError: boom\n")
    done = subprocess.run(
        [sys.executable, TOOL, tmp_path, "--exit-code", "1"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[1:] == [
        "no step was finished since the last start",
        "rank 10: RuntimeError: boom",
    ]
