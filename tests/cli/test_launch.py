"""The launcher ends when a rank ends, and the reverse. Ranks are killed during their imports, before a run starts."""

import os
import re
import signal
import time
from collections.abc import Iterator

import pytest

from megatron_prime.cli.launch import LAUNCHER, die_with_launcher, is_rank
from megatron_prime.training.health.stop import EXIT_CODE
from tests.support.toy_runs import Started, Toy, finish


@pytest.fixture
def job(toy: Toy, tmp_path) -> Iterator[Started]:
    """Return a training job that has started its two ranks."""
    arguments = ("train", "run.toml", f"run_dir={tmp_path / 'run'}", "parallel.num_processes=2")
    with Started(toy.folder, *arguments, is_fresh=True) as started:
        started.wait_until(lambda: len(started.ranks()) == 2)
        yield started


@pytest.mark.parametrize("delay_s", [0.0, 0.5], ids=["before Python runs", "in the import"])
def test_ranks_die_with_a_killed_launcher(job: Started, delay_s):
    time.sleep(delay_s)
    job.process.kill()
    assert job.all_gone()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("to_one_rank", [False, True], ids=["to the launcher", "to a rank"])
@pytest.mark.parametrize("delay_s", [0.0, 0.5, pytest.param(2.0, marks=pytest.mark.slow)])
def test_a_job_that_is_asked_to_stop_while_it_starts_ends_at_once(job: Started, number, to_one_rank, delay_s):
    time.sleep(delay_s)
    (job.ranks()[1] if to_one_rank else job.process).send_signal(number)
    assert job.all_gone()
    assert job.process.returncode == EXIT_CODE
    assert job.output().count("the same command starts it again") == 1


def test_a_signal_to_the_launcher_of_an_evaluation_ends_all_ranks(toy: Toy, tmp_path):
    arguments = ("eval", "run.toml", f"run_dir={tmp_path / 'run'}", "parallel.num_processes=2")
    with Started(toy.folder, *arguments, is_fresh=True) as started:
        started.wait_until(lambda: len(started.ranks()) == 2)
        started.process.send_signal(signal.SIGINT)
        assert started.all_gone()
        assert started.process.returncode == 128 + signal.SIGINT


def test_a_killed_rank_ends_the_job_with_its_signal(job: Started):
    job.ranks()[1].kill()
    assert job.all_gone()
    assert job.process.returncode == 128 + signal.SIGKILL


def test_an_error_of_the_run_gives_its_exit_code_and_one_message(tmp_path, toy: Toy):
    (tmp_path / "broken.jsonl").write_text('{"prompt": "1 + 1 =", "answer": "2"}\nnot json\n')
    finished = finish(
        toy.folder,
        *("train", "run.toml", f"run_dir={tmp_path / 'run'}", f'data.train=["{tmp_path / "broken.jsonl"}"]'),
        "parallel.num_processes=2",
    )
    assert finished.returncode == 1, finished.stderr
    assert "Traceback" not in finished.stderr
    assert "broken.jsonl" in finished.stderr
    assert finished.stderr.count("shows where") == 1


@pytest.mark.parametrize(
    ("estimator", "reason"),
    [
        ("OnHost", r"rank \d: out of host memory: .*--mem=0"),
        ("OnGPU", r"rank \d: out of GPU memory: .*rollout.sglang.mem_fraction"),
    ],
)
def test_a_run_out_of_memory_has_an_exit_code_of_its_own(toy: Toy, tmp_path, estimator, reason):
    options = [f"run_dir={tmp_path / 'run'}", "parallel.num_processes=2", "data.evaluation=[]"]
    name = f"advantage.estimator=tests.support.hungry_estimator:{estimator}"
    finished = finish(toy.folder, "train", "run.toml", name, *options)
    assert finished.returncode == 71, finished.stderr
    assert re.search(reason, finished.stderr) and "Traceback" not in finished.stderr


def test_a_rank_is_recognized_by_its_environment(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not is_rank()
    monkeypatch.setenv("RANK", "0")
    assert is_rank()


def test_a_rank_whose_launcher_is_gone_does_not_start(monkeypatch):
    monkeypatch.delenv(LAUNCHER, raising=False)
    die_with_launcher()
    monkeypatch.setenv(LAUNCHER, str(os.getpid()))  # not this process's parent
    monkeypatch.setattr("ctypes.CDLL", lambda name: (_ for _ in ()).throw(OSError()))
    with pytest.raises(SystemExit, match="which started this one, is gone"):
        die_with_launcher()
