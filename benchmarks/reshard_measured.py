"""Measure the wall time of a weight sync between real processes on this machine, with four methods in the same run.

As a script it is one rank (RANK, WORLD_SIZE and the other variables of torch in the environment); `measure` starts the
ranks.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CASES = ("tp2 -> 2 engines", "pp2 -> 2 engines", "tp2 -> engine of tp2", "pp2 -> engine of tp2")
CONFIG = {
    "model_type": "qwen3",
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 32768,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}


def measure(repeats: int, timeout_s: float = 300) -> list[dict[str, Any]]:
    """Run two ranks over gloo; return each case's bytes and its median seconds by method."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        # The port was only probed for; rank 0 of the job binds it.
        probe.close()
        Path(folder, "config.json").write_text(json.dumps(CONFIG))
        shared = {
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        ranks = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "benchmarks.reshard_measured", folder, str(repeats)],
                env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(2)
        ]
        try:
            codes = [rank.wait(timeout_s) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        if any(codes):
            raise RuntimeError(f"the ranks ended with exit codes {codes}")
        return json.loads(Path(folder, "result.json").read_text())


def rank_main(folder: Path, repeats: int) -> None:
    """Measure every case; rank 0 writes the result."""
    import torch.distributed as dist

    from benchmarks.reshard_methods import Methods
    from megatron_prime.parallel.platform import select_platform

    platform = select_platform("cpu")
    platform.start_process_group()
    results = []
    for case in CASES:
        methods = Methods(folder, case, platform)
        functions = methods.functions()
        times: dict[str, list[float]] = {name: [] for name in functions}
        notes = {}
        for repeat in range(repeats + 1):  # the first is a warm-up
            for name, function in functions.items():
                seconds = _timed(function)
                if repeat:
                    times[name].append(seconds)
                elif name != "memcpy":
                    notes[name] = methods.check()
        results.append(
            {
                "case": case,
                "parameters": methods.num_parameters,
                "network_bytes": methods.network_bytes,
                "delivered_bytes": methods.delivered_bytes,
                "seconds": {name: statistics.median(values) for name, values in times.items()},
                "correct": notes,
                "without": methods.without,
            }
        )
    if dist.get_rank() == 0:
        (folder / "result.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


def _timed(function: Callable[[], None]) -> float:
    import torch.distributed as dist

    dist.barrier()
    start = time.perf_counter()
    function()
    dist.barrier()
    return time.perf_counter() - start


if __name__ == "__main__":
    rank_main(Path(sys.argv[1]), int(sys.argv[2]))
