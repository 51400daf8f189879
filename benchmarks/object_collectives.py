"""Measure bytes and time of the object collectives of one step.

    python -m benchmarks.object_collectives --before FOLDER

FOLDER is a work tree of the commit to compare to. Both versions alternate in the same run, which takes a few minutes.
As a script with `--ranks` it imports the version of `megatron_prime` that PYTHONPATH names first, and forks the ranks.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
REPEATS = 2
"""Measurements of each start, because starting a rank takes longer than a measurement."""
NUM_CONTROL_CALLS = 8
"""Calls of a step whose result is small: memory of the servers released and taken back, versions, the rendezvous."""
PART_NAMES = ("sampled responses", "rewards", "control calls")
TCP_BYTES_SENT = 200
"""Offset of tcpi_bytes_sent, a 64-bit number, in Linux' struct tcp_info."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--before", type=Path, help="work tree of the commit to compare to")
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=3072)
    parser.add_argument("--rounds", type=int, default=2, help="starts of each version, two measurements each")
    parser.add_argument("--ranks", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ranks:
        (num_processes,) = options.processes
        sys.exit(fork_ranks(options.ranks, num_processes, options.rows, options.tokens))
    trees = {"after": ROOT} if options.before is None else {"before": options.before.resolve(), "after": ROOT}
    print(
        "| processes | part | version | MB sent by all ranks | s (of each round) | peak memory of a rank, MiB |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for num_processes in options.processes:
        rounds: dict[str, list[dict[str, Any]]] = {version: [] for version in trees}
        for _ in range(options.rounds):
            for version, tree in trees.items():
                rounds[version] += measure(tree, num_processes, options.rows, options.tokens)
        print("\n".join(table_rows(num_processes, rounds)), flush=True)


def table_rows(num_processes: int, rounds: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return the rows of a table; `rounds` has the results of `measure` by version."""
    rows = []
    for part in PART_NAMES:
        for version, found in rounds.items():
            seconds = ", ".join(f"{of_round[part]['seconds']:.3g}" for of_round in found)
            sent, peak = (
                statistics.median(of_round[part][key] for of_round in found) for key in ("sent", "peak")
            )
            rows.append(
                f"| {num_processes} | {part} | {version} | {sent / 1e6:.4g} | {seconds} | {peak / 2**20:.0f} |"
            )
        if len(rounds) == 2:
            ratios = [
                after[part]["seconds"] / before[part]["seconds"]
                for before, after in zip(rounds["before"], rounds["after"], strict=True)
            ]
            sent = [statistics.median(of_round[part]["sent"] for of_round in of) for of in rounds.values()]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            rows.append(
                f"| {num_processes} | {part} | after / before | {sent[1] / sent[0]:.3f} | {spread} | |"
            )
    return rows


def measure(
    tree: Path, num_processes: int, num_rows: int, num_tokens: int, timeout_s: float = 600
) -> list[dict[str, Any]]:
    """Run the ranks on a version; return seconds, bytes sent by all ranks and a rank's peak memory, by part.

    One element per measurement.
    """
    # As a script, this file runs with the packages of `tree`, which may be older.
    from benchmarks.gloo_ranks import job_environment

    with tempfile.TemporaryDirectory() as folder:
        job = job_environment(num_processes, tree)
        command = [sys.executable, "-W", "ignore", __file__, "--ranks", folder]
        command += ["--processes", str(num_processes), "--rows", str(num_rows), "--tokens", str(num_tokens)]
        # The ranks are in the session of the process that forks them, so that they can be ended with it.
        ranks = subprocess.Popen(command, env=job, start_new_session=True)
        try:
            code = ranks.wait(timeout_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(ranks.pid, signal.SIGKILL)
        if code:
            raise RuntimeError(f"the ranks ended with exit code {code}")
        reports = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(num_processes)]
    return [
        {
            part: {
                # The ranks leave a collective one after another; it has ended when the last has its result.
                "seconds": max(of_rank[part]["seconds"] for of_rank in by_rank),
                "sent": sum(of_rank[part]["sent"] for of_rank in by_rank),
                "peak": max(of_rank[part]["peak"] for of_rank in by_rank),
            }
            for part in PART_NAMES
        }
        for by_rank in zip(*reports, strict=True)
    ]


def fork_ranks(folder: Path, num_processes: int, num_rows: int, num_tokens: int) -> int:
    """Run the ranks as forks, which have imported everything; return 0 if all succeeded."""
    import megatron_prime.engines.sglang.driver
    import megatron_prime.parallel.topology  # noqa: F401

    pids = []
    for rank in range(num_processes):
        pid = os.fork()
        if not pid:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            code = 1
            try:
                rank_main(folder, num_rows, num_tokens)
                code = 0
            finally:
                if code:
                    traceback.print_exc()
                os._exit(code)
        pids.append(pid)
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)


def rank_main(folder: Path, num_rows: int, num_tokens: int) -> None:
    """Run the object collectives of a step as the SGLang engine and the verification call them."""
    import inspect

    import torch.distributed as dist

    from megatron_prime.engines.sglang.driver import Driver
    from megatron_prime.parallel.collectives import all_gather_lists, broadcast_object
    from megatron_prime.parallel.platform import select_platform
    from megatron_prime.parallel.topology import build_topology
    from megatron_prime.rollout.ranks import Ranks

    platform = select_platform("cpu", threads_per_process=1)
    platform.start_process_group()
    topology = build_topology(platform)
    collectives: dict[str, Any] = {"gather": lambda items: all_gather_lists(items, topology)}
    if "broadcast" in inspect.signature(Ranks).parameters:
        collectives["broadcast"] = lambda item: broadcast_object(item, topology)
    ranks = Ranks(topology.rank, topology.world_size, **collectives)
    driver = Driver(ranks, resync=lambda server: None)
    sampled = sampled_responses(num_rows, num_tokens) if driver.is_driver else None

    async def generate() -> object:
        return sampled

    async def control() -> None:
        return None

    parts: dict[str, Callable[[], object]] = {
        "sampled responses": lambda: driver.run(generate),
        "rewards": lambda: ranks.gather_all(ranks.share([1.0] * num_rows)),
        "control calls": lambda: [driver.run(control) for _ in range(NUM_CONTROL_CALLS)],
    }
    driver.run(control)  # opens the connections
    reports = [{part: _measured(call) for part, call in parts.items()} for _ in range(REPEATS)]
    driver.close()
    Path(folder, f"{topology.rank}.json").write_text(json.dumps(reports))
    # A rank that ended now would break the connections of a slower one.
    dist.barrier()
    dist.destroy_process_group()


def _measured(call: Callable[[], object]) -> dict[str, float]:
    """Return seconds, bytes sent and more memory at the peak of a call that all ranks make."""
    import torch.distributed as dist

    dist.barrier()
    reset_peak()
    sent, held, start = bytes_sent(), peak_bytes(), time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    found = {"seconds": seconds, "sent": bytes_sent() - sent, "peak": peak_bytes() - held}
    dist.barrier()
    del result
    return found


def sampled_responses(num_rows: int, num_tokens: int) -> list[Any]:
    """Return responses of random tokens and log-probs, eight to a prompt."""
    import torch

    from megatron_prime.types import Prompt, Rollout

    generator = torch.Generator().manual_seed(0)
    prompts = [Prompt(index, tuple(range(1000, 1200)), "42") for index in range(-(-num_rows // 8))]
    return [
        Rollout(
            prompts[row // 8],
            row % 8,
            tuple(torch.randint(0, 150_000, (num_tokens,), generator=generator).tolist()),
            tuple((-torch.rand(num_tokens, generator=generator)).tolist()),
            "stop",
            0,
        )
        for row in range(num_rows)
    ]


def bytes_sent() -> int:
    """Return the bytes that this process has sent over its open TCP connections, as the kernel counts them."""
    total = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if not os.readlink(entry).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as connection:
                if connection.type == socket.SOCK_STREAM and connection.family != socket.AF_UNIX:
                    known = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_BYTES_SENT + 8)
                    total += struct.unpack_from("Q", known, TCP_BYTES_SENT)[0]
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return total


def reset_peak() -> None:
    """Let the kernel count the peak of this process's memory from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Return the largest resident memory of this process since `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
