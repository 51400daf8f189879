"""What a forked writer puts is what the trainer gets, of each save by itself and complete or not at all."""

import multiprocessing
import os
import queue
import signal

import pytest

from megatron_prime.training.checkpoint.fork_results import ForkResults

FORK = multiprocessing.get_context("fork")


def in_a_fork(function, *arguments) -> int | None:
    process = FORK.Process(target=function, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


@pytest.mark.parametrize(
    "results",
    [
        {},
        {0: ["first", "second"]},
        OSError("disk full"),
        {0: ["more than a pipe holds"] + [os.urandom(9)] * 99_999},
    ],
    ids=["nothing", "names", "error", "long"],
)
def test_results_of_a_fork_arrive(results):
    one, other = ForkResults(), ForkResults()
    assert in_a_fork(other.put, "of the other save") == 0
    assert in_a_fork(one.put, results) == 0
    found = one.get_nowait()
    assert repr(found) == repr(results)
    assert other.get_nowait() == "of the other save"


class KillsItsWriter:
    """A result in whose middle the process that writes it is killed."""

    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("is_begun", [False, True])
def test_incomplete_results_are_none(is_begun):
    results = ForkResults()
    if is_begun:
        assert in_a_fork(results.put, [b"x" * 1_000_000, KillsItsWriter()]) == -signal.SIGKILL
    with pytest.raises(queue.Empty):
        results.get_nowait()
