"""Compare whole steps of training with TRL's RLOO and GRPO trainers, and decoding with transformers and SGLang.

    python -m benchmarks.peers prepare [--work runs/peers]      # TRL's environment, and the models
    python -m benchmarks.peers measure [--work runs/peers] [--workloads 0.1M 5M ...] [--trainers ...] [--rounds 3]
    python -m benchmarks.peers decode [--work runs/peers] [--sizes 5M 50M] [--rounds 3]
    python -m benchmarks.peers report                           # docs/performance.md

A round runs every trainer once, in processes of its own with one thread each; rounds repeat, so that all trainers see
the same changes of the machine's load. The responses are sampled, so that the tokens of a step differ a little: the
figures are tokens per second, of wall time and of CPU time. `decode` alternates its methods in the same way, in one
process and one SGLang server.
"""

import argparse
import json
import os
import subprocess
import venv
from pathlib import Path
from typing import Any

from benchmarks.peers.report import RESULTS, step_rate, write_report
from benchmarks.peers.task import WORKLOADS, write
from benchmarks.peers.trainers import TRAINERS, run, trainers_of

ROOT = Path(__file__).parents[2]
TRL_REQUIREMENTS = ("trl==1.16.0", "torch==2.13.0")
DECODED_SIZES = ("0.1M", "5M", "50M")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=("prepare", "measure", "decode", "report"))
    parser.add_argument(
        "--work", type=Path, default=Path("runs/peers"), help="folder of environment and runs"
    )
    parser.add_argument("--workloads", nargs="+", choices=tuple(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--trainers", nargs="+", choices=tuple(TRAINERS), default=list(TRAINERS))
    parser.add_argument("--sizes", nargs="+", choices=DECODED_SIZES, default=list(DECODED_SIZES))
    parser.add_argument("--sglang-python", type=Path, default=Path(".venv-sglang/bin/python"))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    work = options.work.resolve()
    if options.command == "prepare":
        prepare(work)
    elif options.command == "measure":
        measure(work, options.workloads, options.trainers, options.rounds)
    elif options.command == "decode":
        decode(work, options.sizes, options.rounds, options.sglang_python)
    write_report()


def prepare(work: Path) -> None:
    """Build TRL's environment and write the models."""
    from benchmarks.peers.decoding import workload_of

    if not (work / "trl").exists():
        venv.create(work / "trl", with_pip=True)
        pip = [str(work / "trl/bin/pip"), "install", "-c", str(ROOT / "constraints.txt"), *TRL_REQUIREMENTS]
        subprocess.run(pip, check=True)
    for name, workload in WORKLOADS.items():
        write(work / name, workload)
    for size in DECODED_SIZES:
        write(work / f"decoding-{size}", workload_of(size))


def measure(work: Path, workloads: list[str], trainers: list[str], rounds: int) -> None:
    """Carry out the runs, and append a record of each."""
    if not (work / "trl/bin/python").exists():
        raise SystemExit(f"{work / 'trl'} is missing: run `python -m benchmarks.peers prepare` first")
    for number in range(rounds):
        for workload in workloads:
            chosen = [name for name in trainers_of(workload) if name in trainers]
            # Every second round in the reverse order, so that no trainer always follows the same one.
            for name in chosen if number % 2 == 0 else reversed(chosen):
                load = os.getloadavg()[0]
                record = {"workload": workload, "trainer": name, "load": load, **run(work, workload, name)}
                _append(record)
                rate = step_rate(record)
                print(
                    f"round {number + 1}, {workload}, {name}: {rate:,.0f} tokens/s, load {load:.1f}",
                    flush=True,
                )


def decode(work: Path, sizes: list[str], rounds: int, sglang_python: Path) -> None:
    """Time decoding alone, and append a record of each measurement."""
    from benchmarks.peers import decoding

    for size in sizes:
        decoding.measure(work / f"decoding-{size}", size, rounds, sglang_python, _append)


def _append(record: dict[str, Any]) -> None:
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
