"""Measure the bytes and the time of weight syncs: `python -m benchmarks.resharding --json out.json`.

    1. bytes sent, relative to the minimum possible, for every layout of a grid
    2. time in large jobs, simulated from the bytes on each link, compared to gathering everything
    3. time between two real processes on this machine, compared to gathering, Megatron-core's resharding and a memcpy

It takes about two minutes on two cores, and half a minute with --quick.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

from benchmarks import reshard_measured
from benchmarks.reshard_layouts import bytes_over_lower_bound, grid
from benchmarks.reshard_simulation import NIC_BYTES_PER_S, NVLINK_BYTES_PER_S, RANKS_PER_NODE, cases, simulate

METHODS = ("ours", "gather everything", "megatron-core", "memcpy")


def main() -> None:
    """Run all three parts, print the tables and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for all results")
    parser.add_argument("--quick", action="store_true", help="a third of the grid, fewer repeats")
    options = parser.parse_args()
    start = time.perf_counter()
    results: dict[str, Any] = {"machine": {"cpu": platform.machine(), "python": platform.python_version()}}
    results["grid"] = bytes_over_lower_bound(grid(options.quick))
    print(_grid_table(results["grid"]), flush=True)
    results["simulated"] = [simulate(case) for case in cases()]
    print(_simulated_table(results["simulated"]), flush=True)
    results["measured"] = reshard_measured.measure(repeats=2 if options.quick else 7)
    print(_measured_table(results["measured"]), flush=True)
    results["total_s"] = time.perf_counter() - start
    print(f"Total: {results['total_s']:.0f} s.")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _grid_table(found: dict[str, dict[str, float]]) -> str:
    rows = [
        (
            name,
            f"{entry['layouts']:.0f}",
            f"{entry['layouts_without_network']:.0f}",
            f"{entry['worst_ratio']:.4f}",
        )
        for name, entry in found.items()
    ]
    header = ("model", "layouts", "without network traffic", "worst bytes / lower bound")
    return f"\n## Bytes over the lower bound\n\n{_table(header, rows)}"


def _simulated_table(results: list[dict[str, Any]]) -> str:
    header = (
        "model",
        "GPUs",
        "placement",
        "planning s",
        "transfers",
        "bytes / bound",
        "NIC sent max (mean) GB",
        "NIC received max (mean) GB",
        "NVLink mean GB",
        "ours s",
        "ours FP8 s",
        "gather: NIC GB per GPU",
        "gather s",
        "gather / ours",
    )
    rows = [
        (
            r["model"],
            str(r["gpus"]),
            r["placement"],
            f"{r['planning_s']:.2f}",
            f"{r['transfers']:,}",
            f"{r['ratio']:.2f}",
            "{:.1f} ({:.1f})".format(*r["nic_sent_gb"]),
            "{:.1f} ({:.1f})".format(*r["nic_received_gb"]),
            f"{r['nvlink_gb']:.1f}",
            f"{r['seconds']:.2f}",
            f"{r['seconds_fp8']:.2f}",
            f"{r['gather']['nic_received_gb']:.0f}",
            f"{r['gather']['seconds']:.2f}",
            f"{r['gather']['seconds'] / r['seconds']:.1f}",
        )
        for r in results
    ]
    title = (
        f"\n## Simulated: {RANKS_PER_NODE} GPUs per node, NVLink {NVLINK_BYTES_PER_S / 1e9:.0f} GB/s,"
        f" one NIC of {NIC_BYTES_PER_S / 1e9:.0f} GB/s per GPU, bf16"
    )
    return f"{title}\n\n{_table(header, rows)}"


def _measured_table(results: list[dict[str, Any]]) -> str:
    rows = []
    for r in results:
        assert all(r["correct"].values()), r
        seconds = (f"{r['seconds'][method]:.3f}" if method in r["seconds"] else "-" for method in METHODS)
        size = (f"{r[key] / 1e6:,.0f}" for key in ("delivered_bytes", "network_bytes"))
        rows.append((r["case"], *size, *seconds))
    header = ("case", "delivered MB", "over the network MB", *(f"{method} s" for method in METHODS))
    parameters = results[0]["parameters"] / 1e6
    title = f"\n## Measured: {parameters:.0f}M parameters in fp32, two processes, gloo, medians of one run"
    return f"{title}\n\n{_table(header, rows)}"


if __name__ == "__main__":
    main()
