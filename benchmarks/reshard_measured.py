"""Measure the wall time of a weight sync between real processes on this machine, with four methods in the same run.

As a script it is one rank (RANK, WORLD_SIZE and the other variables of torch in the environment); `measure` starts the
ranks.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gloo_ranks import run_ranks

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


def measure(repeats: int) -> list[dict[str, Any]]:
    """Run two ranks over gloo; return each case's bytes and its median seconds by method."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(CONFIG))
        run_ranks("benchmarks.reshard_measured", [folder, str(repeats)], 2)
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
