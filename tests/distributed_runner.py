"""Runs a function on several real processes over gloo and brings back what each returned."""

import importlib
import os
import pickle
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent


def run_distributed(
    function: Callable[..., Any], num_processes: int, *args: Any, timeout_s: float = 300
) -> list[Any]:
    """Call a module-level function with `args` on every rank; return the results by rank.

    A rank that fails raises AssertionError here with all ranks' output.
    """
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        call = Path(folder, "call.pickle")
        call.write_bytes(pickle.dumps((function.__module__, function.__qualname__, args)))
        processes = []
        for rank in range(num_processes):
            environment = os.environ | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(num_processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "GLOO_SOCKET_IFNAME": "lo",
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join([str(TESTS.parent), *sys.path]),
            }
            with Path(folder, f"log{rank}").open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-W", "ignore", __file__, folder],
                        env=environment,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        try:
            codes = [process.wait(timeout_s) for process in processes]
        finally:
            for process in processes:
                process.kill()
        logs = "\n".join(
            f"--- rank {rank}\n{Path(folder, f'log{rank}').read_text()}" for rank in range(num_processes)
        )
        assert codes == [0] * num_processes, f"exit codes {codes}\n{logs[-6000:]}"
        return [pickle.loads(Path(folder, f"result{rank}").read_bytes()) for rank in range(num_processes)]


def _main(folder: str) -> None:
    module, name, args = pickle.loads(Path(folder, "call.pickle").read_bytes())
    result = getattr(importlib.import_module(module), name)(*args)
    Path(folder, f"result{os.environ['RANK']}").write_bytes(pickle.dumps(result))
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    _main(sys.argv[1])
