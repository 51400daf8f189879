import pytest

from megatron_prime.observability.rollout_log.folder import RolloutLog
from megatron_prime.observability.rollout_log.reader import logged_steps
from megatron_prime.observability.rollout_log.schema import FileInfo
from tests.support.logged_rollouts import logged_response

MIB = 1 << 20


def fill(log, steps, num_tokens=3):
    for step in steps:
        log.log(FileInfo(step), [logged_response(num_tokens=num_tokens)])


def test_files_of_later_steps_and_of_killed_writes_are_removed_on_resume(tmp_path):
    folder = tmp_path / "run" / "rollouts"
    fill(RolloutLog(folder), range(1, 6))
    (folder / ".step-00000006.parquet.host.1.tmp").touch()
    (folder / "notes.txt").touch()
    log = RolloutLog(folder, 3)
    assert sorted(path.name for path in folder.iterdir()) == [
        "notes.txt",
        "step-00000001.parquet",
        "step-00000002.parquet",
    ]
    fill(log, [3])
    assert list(logged_steps(folder)) == [1, 2, 3]
    RolloutLog(folder)
    assert logged_steps(folder) == {}


def test_the_oldest_files_are_removed_and_the_newest_stays(tmp_path):
    size = 300_000
    log = RolloutLog(tmp_path, max_mib=1)
    fill(log, range(1, 8), num_tokens=size // 10)
    kept = logged_steps(tmp_path)
    assert 1 < len(kept) < 7
    assert list(kept) == list(range(8 - len(kept), 8))
    assert sum(path.stat().st_size for path in kept.values()) <= MIB
    # A later attempt counts what is there, and a single file may be larger than the limit.
    fill(RolloutLog(tmp_path, 8, 1), [8], num_tokens=size)
    assert list(logged_steps(tmp_path)) == [8]
    assert logged_steps(tmp_path)[8].stat().st_size > MIB


def test_a_file_that_a_user_has_removed_is_no_error(tmp_path):
    log = RolloutLog(tmp_path, max_mib=1)
    fill(log, [1], num_tokens=200_000)
    logged_steps(tmp_path)[1].unlink()
    fill(log, [2], num_tokens=200_000)
    assert list(logged_steps(tmp_path)) == [2]


def test_the_folder_is_made_with_the_first_file(tmp_path):
    log = RolloutLog(tmp_path / "rollouts")
    assert not (tmp_path / "rollouts").exists()
    fill(log, [1])
    assert (tmp_path / "rollouts").stat().st_mode & 0o077 == 0


def test_steps_must_increase(tmp_path):
    log = RolloutLog(tmp_path)
    fill(log, [2])
    with pytest.raises(AssertionError, match="was written after"):
        fill(log, [2])


def test_a_folder_that_cannot_be_written_is_named_and_writing_may_go_on_later(tmp_path):
    log = RolloutLog(tmp_path / "rollouts")
    (tmp_path / "rollouts").touch()
    with pytest.raises(OSError, match="rollouts"):
        fill(log, [1])
    (tmp_path / "rollouts").unlink()
    fill(log, [2])
    assert list(logged_steps(tmp_path / "rollouts")) == [2]
