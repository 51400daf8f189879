"""The command line of the benchmark; see the package."""

import argparse
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from benchmarks.delta_sync.changes import BLOCK_BYTES, measure_changes
from benchmarks.delta_sync.slow_network import limited
from benchmarks.delta_sync.transfer import measure_transfer
from megatron_prime.engines.sglang.engine import SGLangEngine
from tests.engines.sglang.weights.sync_chain import DISTURBANCES, SyncChain
from tests.support.sglang_live import sglang_settings
from tests.support.tiny_models import save_tiny_model

_WEIGHTS = dict(zip(DISTURBANCES, (76, 8, 6, 3, 3, 4), strict=True))
"""The share of each disturbance, in per cent."""


def main() -> None:
    """Run one part and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.delta_sync")
    parser.add_argument("part", choices=["changes", "transfer", "slow", "chain"])
    parser.add_argument("--rounds", type=int, default=9, metavar="NUMBER", help="of transfer and slow")
    parser.add_argument(
        "--mbit", type=int, nargs="+", default=[1000, 200], metavar="NUMBER", help="rates of slow"
    )
    parser.add_argument("--syncs", type=int, default=200, metavar="NUMBER", help="of chain")
    options = parser.parse_args()
    if options.part == "slow":
        _slow(options)
        return
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}\n")
    {"changes": _changes, "transfer": _transfer, "chain": _chain}[options.part](options)


def _slow(options: argparse.Namespace) -> None:
    for mbit in options.mbit:
        print(f"\n{mbit} Mbit/s\n", flush=True)
        command = [sys.executable, "-m", "benchmarks.delta_sync", "transfer", "--rounds", str(options.rounds)]
        subprocess.run(limited(command, mbit), check=True)


def _row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def _changes(options: argparse.Namespace) -> None:
    del options
    _row(
        "learning rate",
        "updates a step",
        "step",
        "elements",
        *(f"blocks of {size} B" for size in BLOCK_BYTES),
    )
    _row(*["---"] * (4 + len(BLOCK_BYTES)))
    for rate, num_updates, step, shares in measure_changes():
        _row(f"{rate:g}", num_updates, step, *(f"{share:.2%}" for share in shares))


def _transfer(options: argparse.Namespace) -> None:
    found = list(measure_transfer(options.rounds))
    full = {entry["round"]: entry for entry in found if entry["share"] < 0}
    _row(
        "changed",
        "MB sent",
        "of full",
        "s: median (min to max)",
        "s / full in the same round",
        "transport s",
        "copy s",
    )
    _row(*["---"] * 7)
    for share in sorted({entry["share"] for entry in found}):
        entries = [entry for entry in found if entry["share"] == share]
        assert all(entry["patched"] == (share >= 0) for entry in entries)
        seconds = [entry["seconds"] for entry in entries]
        ratios = [entry["seconds"] / full[entry["round"]]["seconds"] for entry in entries]
        size = entries[0]["bytes"]
        _row(
            "full" if share < 0 else f"{share:.1%}",
            f"{size / 1e6:,.1f}",
            f"{size / full[1]['bytes']:.2%}",
            _spread(seconds),
            _spread(ratios),
            _spread([entry["floor_s"] for entry in entries]),
            _spread([entry["copy_s"] for entry in entries]),
        )


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _chain(options: argparse.Namespace) -> None:
    draw, start = random.Random(0), time.perf_counter()
    drawn: Counter[str] = Counter()
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = save_tiny_model("qwen2", folder / "model")
        settings = sglang_settings(num_servers=2, max_restarts=options.syncs)
        engine = SGLangEngine(
            folder / "model", device="cpu", dtype="bf16", seed=0, settings=settings, run_dir=folder / "run"
        )
        try:
            chain = SyncChain(engine, folder / "model", model.state_dict(), torch.bfloat16, share=0.01)
            for number in range(options.syncs):
                kind = draw.choices(DISTURBANCES, [*_WEIGHTS.values()])[0] if number else "none"
                found = chain.push(kind)
                drawn[kind] += 1
                total.update({name: value for name, value in found.items() if name.startswith("num_")})
                differences = chain.differences()
                assert not differences, (number, kind, differences)
                if (number + 1) % 10 == 0:
                    print(f"{number + 1} syncs, all equal: {dict(total)}", flush=True)
        finally:
            engine.close()
    seconds = time.perf_counter() - start
    print(
        f"\n{options.syncs} syncs to two servers in {seconds:.0f} s; equal after each, by SGLang's own checksums"
    )
    print(f"drawn {dict(drawn)}; took effect {dict(chain.disturbed)}; {dict(total)}")


if __name__ == "__main__":
    main()
