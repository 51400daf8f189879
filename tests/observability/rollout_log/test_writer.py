import os
import signal
import subprocess
import sys

import pytest

from megatron_prime.observability.rollout_log.reader import RolloutFile, logged_steps
from megatron_prime.observability.rollout_log.schema import FileInfo, step_path
from megatron_prime.observability.rollout_log.writer import encode_rollouts, write_rollouts
from tests.support.logged_rollouts import logged_response


def test_equal_rows_give_equal_bytes():
    rows = [logged_response(group, sample) for group in range(3) for sample in range(2)]
    assert encode_rollouts(FileInfo(1), rows) == encode_rollouts(FileInfo(1), rows)


def test_what_utf8_cannot_hold_becomes_a_question_mark(tmp_path):
    path = tmp_path / "a.parquet"
    write_rollouts(path, FileInfo(1), [logged_response(ground_truth="a\ud800b", prompt="שלום 🙂\x00")])
    (row,) = RolloutFile(path).rows()
    assert (row["ground_truth"], row["prompt"]) == ("a?b", "שלום 🙂\x00")


def test_an_unknown_column_is_a_bug():
    with pytest.raises(AssertionError, match="colour"):
        encode_rollouts(FileInfo(1), [logged_response(colour="red")])


def test_a_kill_during_a_write_leaves_whole_files(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from megatron_prime.observability.rollout_log import FileInfo, step_path, write_rollouts\n"
        "from tests.support.logged_rollouts import logged_response\n"
        "rows = [logged_response(group, 0, 2000) for group in range(50)]\n"
        "print('ready', flush=True)\n"
        "for step in range(1, 10_000): write_rollouts(step_path(Path(sys.argv[1]), step), FileInfo(step), rows)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        while not step_path(tmp_path, 3).exists():
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    steps = logged_steps(tmp_path)
    assert list(steps) == list(range(1, len(steps) + 1))
    for step, path in steps.items():
        with RolloutFile(path) as file:
            assert (file.info.step, file.table().num_rows) == (step, 50)


def test_an_unwritable_file_is_named(tmp_path):
    (tmp_path / "step").mkdir()
    path = step_path(tmp_path / "step", 1)
    path.mkdir()
    with pytest.raises(OSError, match="step-00000001"):
        write_rollouts(path, FileInfo(1), [logged_response()])
    assert list((tmp_path / "step").iterdir()) == [path]
