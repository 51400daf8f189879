"""Errors for want of memory are recognized, with the memory that ran out, and others are not."""

import errno
import subprocess
import sys

import pytest
import torch

from megatron_prime.parallel.out_of_memory import ADVICE, memory_that_ran_out, num_oom_kills
from tests.support.forked_commands import FORKED

GPU, HOST, EITHER = ADVICE  # in the order of the table


def allocation_failure() -> RuntimeError:
    """Return the error of a tensor that no machine can hold."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 62, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize(
    ("make", "memory"),
    [
        pytest.param(
            lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), GPU, id="GPU"
        ),
        pytest.param(lambda: torch.OutOfMemoryError("no words"), GPU, id="by its class alone"),
        pytest.param(
            lambda: RuntimeError("OutOfMemoryError: CUDA out of memory."), GPU, id="of rank 0, sent on"
        ),
        pytest.param(lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when"), GPU, id="cuBLAS"),
        pytest.param(
            lambda: RuntimeError("CUDA error: out of memory"), EITHER, id="pinned memory, or cudaMalloc"
        ),
        pytest.param(
            lambda: torch.distributed.DistBackendError("NCCL error: Cuda failure 2 'out of memory'"),
            EITHER,
            id="NCCL",
        ),
        pytest.param(
            lambda: RuntimeError(
                "SGLang server 0 ended 4 times in a row; its log:\ntorch.OutOfMemoryError: x"
            ),
            GPU,
            id="a server's log",
        ),
        pytest.param(allocation_failure, HOST, id="a tensor on the host"),
        pytest.param(MemoryError, HOST, id="Python"),
        pytest.param(lambda: OSError(errno.ENOMEM, "Cannot allocate memory"), HOST, id="fork"),
        pytest.param(lambda: OSError("rank 3 could not write: Cannot allocate memory"), HOST, id="a save"),
        pytest.param(lambda: ValueError("the layout runs out of memory"), None, id="advice to users"),
        pytest.param(lambda: OSError(errno.ENOSPC, "No space left on device"), None, id="a full disk"),
        pytest.param(lambda: RuntimeError("CUDA error: device-side assert triggered"), None, id="another"),
        pytest.param(lambda: ConnectionError("gloo/transport/: Connection reset by peer"), None, id="a peer"),
    ],
)
def test_the_memory_that_ran_out_is_found(make, memory):
    error = make()
    assert memory_that_ran_out(error) == memory
    try:
        raise RuntimeError("the update failed") from error
    except RuntimeError as outer:
        assert memory_that_ran_out(outer) == memory


LIMITED = """
import resource, sys, torch
from megatron_prime.cli.commands import _guarded
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), used + (64 << 20)))
failures = {"torch": lambda: torch.ones(1 << 26), "python": lambda: bytearray(256 << 20)}
sys.exit(_guarded(failures[sys.argv[1]]))
"""


@pytest.mark.parametrize("by", ["torch", "python"])
def test_a_real_limit_gives_the_exit_code_and_advice(by):
    done = subprocess.run(
        [sys.executable, *FORKED, "-c", LIMITED, by], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 71, done.stderr
    assert "megatron-prime, rank 0: out of host memory: `megatron-prime plan` counts" in done.stderr


def test_kills_for_want_of_memory_are_counted():
    """A real one happens in tests/slurm, where Slurm limits the memory of a job."""
    found = num_oom_kills()
    assert found is None or found >= 0
