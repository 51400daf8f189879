"""Run a function on several real processes that are connected by gloo, and collect the results."""

import gc
import os
import pickle
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_prime.workers.ports import free_port
from tests.support.deadlines import seconds
from tests.support.forked_commands import FORKED

ROOT = Path(__file__).parents[2]
PROGRAM = "import sys; from tests.support.distributed_runner import run_rank; run_rank(sys.argv[1])"

POLL_S = 0.05
AFTER_FAILURE_S = 20.0
"""Time that the other ranks have to fail too, which says what they were waiting for."""


def run_distributed(
    function: Callable[..., Any], num_processes: int, *args: Any, timeout_s: float = 900
) -> list[Any]:
    """Call a module-level function with `args` on every rank; return the results by rank.

    Raises:
        AssertionError: A rank failed, or was still running after `timeout_s`, which is scaled for this machine
            (tests.support.deadlines). The message holds the end of all ranks' output.
    """
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        Path(folder, "call.pickle").write_bytes(pickle.dumps((function, args)))
        processes = []
        for rank in range(num_processes):
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(num_processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "GLOO_SOCKET_IFNAME": "lo",
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
            }
            with Path(folder, f"log{rank}").open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, *FORKED, "-c", PROGRAM, folder],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=os.environ | environment,
                )
            processes.append(process)
        deadline = time.monotonic() + seconds(timeout_s)
        try:
            while time.monotonic() < deadline and any(process.poll() is None for process in processes):
                if any(process.returncode for process in processes):
                    # The others may wait for the one that has failed until the deadline.
                    deadline = min(deadline, time.monotonic() + seconds(AFTER_FAILURE_S))
                time.sleep(POLL_S)
        finally:
            codes = [process.poll() for process in processes]
            for process in processes:
                process.kill()
                process.wait()
        logs = "\n".join(
            f"--- rank {rank}\n{Path(folder, f'log{rank}').read_text()}" for rank in range(num_processes)
        )
        # The exit code of a rank that was still running at the deadline is None.
        assert codes == [0] * num_processes, f"exit codes {codes}\n{logs[-6000:]}"
        return [pickle.loads(Path(folder, f"result{rank}").read_bytes()) for rank in range(num_processes)]


class _ArrayPickler(pickle.Pickler):
    """Writes tensors as arrays, which takes a tenth of the time where there are thousands of small ones."""

    def reducer_override(self, item: Any) -> Any:
        import torch

        if type(item) is not torch.Tensor or item.requires_grad or item.dtype is torch.bfloat16:
            return NotImplemented
        return torch.from_numpy, (item.contiguous().numpy(),)


def run_rank(folder: str) -> None:
    """Call the function on this rank, and write its result to a file."""
    warnings.simplefilter("ignore")
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    function, args = pickle.loads(Path(folder, "call.pickle").read_bytes())
    gc.freeze()  # Megatron asks for a garbage collection whenever it saves or loads an optimizer.
    result = function(*args)
    with Path(folder, f"result{os.environ['RANK']}").open("wb") as file:
        _ArrayPickler(file).dump(result)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
