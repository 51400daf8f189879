"""Run a function on several real processes that are connected by gloo, and collect the results."""

import contextlib
import multiprocessing
import os
import pickle
import random
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.deadlines import seconds

ROOT = Path(__file__).parents[2]
# Importing torch and Megatron takes seconds, so one process imports them and every rank is a fork of it.
_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(
    ["tests.support.layout_worker", "megatron_prime.cli.train", "tests.support.frozen_imports"]
)


def _free_port() -> int:
    """Return a free port below the system's ephemeral range.

    The system assigns ephemeral ports to other processes, which could take the port before the rank listens on it.
    """
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def run_distributed(
    function: Callable[..., Any], num_processes: int, *args: Any, timeout_s: float = 900
) -> list[Any]:
    """Call a module-level function with `args` on every rank; return the results by rank.

    Raises:
        AssertionError: A rank failed, or was still running after `timeout_s`, which is scaled for this machine
            (tests.support.deadlines). The message holds the end of all ranks' output.
    """
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
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
            process = _FORKED.Process(target=_run_rank, args=(folder, os.environ | environment))
            process.start()
            processes.append(process)
        deadline = time.monotonic() + seconds(timeout_s)
        try:
            for process in processes:
                process.join(max(0.0, deadline - time.monotonic()))
        finally:
            codes = [process.exitcode for process in processes]
            for process in processes:
                process.kill()
                process.join()
        logs = "\n".join(
            f"--- rank {rank}\n{_text_of(Path(folder, f'log{rank}'))}" for rank in range(num_processes)
        )
        # The exit code of a rank that was still running at the deadline is None.
        assert codes == [0] * num_processes, f"exit codes {codes}\n{logs[-6000:]}"
        return [pickle.loads(Path(folder, f"result{rank}").read_bytes()) for rank in range(num_processes)]


def _text_of(log: Path) -> str:
    return log.read_text() if log.exists() else ""


def _run_rank(folder: str, environment: dict[str, str]) -> None:
    """Set the environment of a rank, call the function, and write its result and output to files."""
    os.environ.clear()
    os.environ.update(environment)
    with Path(folder, f"log{environment['RANK']}").open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    warnings.simplefilter("ignore")
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    function, args = pickle.loads(Path(folder, "call.pickle").read_bytes())
    result = function(*args)
    Path(folder, f"result{os.environ['RANK']}").write_bytes(pickle.dumps(result))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
