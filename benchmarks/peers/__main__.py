"""Compare whole steps of training with TRL's RLOO and GRPO trainers.

    python -m benchmarks.peers prepare [--work runs/peers]      # TRL's environment, and the models
    python -m benchmarks.peers measure [--work runs/peers] [--sizes 0.1M 5M 50M] [--rounds 5]
    python -m benchmarks.peers report                           # benchmarks/results/peers.md

A round runs every trainer once, each in a process of its own with one thread; rounds repeat, so that all trainers see
the same changes of the machine's load. The responses are sampled, so that the tokens of a step differ a little: the
figures are tokens per second, of wall time and of CPU time.
"""

import argparse
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.peers.report import RESULTS, write_report
from benchmarks.peers.task import GROUP_SIZE, MAX_RESPONSE_TOKENS, SIZES, write

ROOT = Path(__file__).parents[2]
TRL_REQUIREMENTS = ("trl==1.16.0", "torch==2.13.0")
TRAINERS = ("ours RLOO", "TRL RLOO", "TRL RLOO static", "TRL GRPO", "ours PRIME")
ROWS_PER_MICROBATCH = 16
TIMEOUT_S = 1800


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=("prepare", "measure", "report"))
    parser.add_argument(
        "--work", type=Path, default=Path("runs/peers"), help="folder of environment and runs"
    )
    parser.add_argument("--sizes", nargs="+", choices=tuple(SIZES), default=list(SIZES))
    parser.add_argument("--trainers", nargs="+", choices=TRAINERS, default=list(TRAINERS))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    work = options.work.resolve()
    if options.command == "prepare":
        prepare(work)
    elif options.command == "measure":
        measure(work, options.sizes, options.trainers, options.rounds)
    write_report()


def prepare(work: Path) -> None:
    """Build TRL's environment and write the models."""
    if not (work / "trl").exists():
        venv.create(work / "trl", with_pip=True)
        pip = [str(work / "trl/bin/pip"), "install", "-c", str(ROOT / "constraints.txt"), *TRL_REQUIREMENTS]
        subprocess.run(pip, check=True)
    for name, size in SIZES.items():
        write(work / name, size)


def measure(work: Path, sizes: list[str], trainers: list[str], rounds: int) -> None:
    """Carry out the runs, and append a record of each."""
    if not (work / "trl/bin/python").exists():
        raise SystemExit(f"{work / 'trl'} is missing: run `python -m benchmarks.peers prepare` first")
    for number in range(rounds):
        for size in sizes:
            # Every second round in the reverse order, so that no trainer always follows the same one.
            for trainer in trainers if number % 2 == 0 else reversed(trainers):
                found = _run(work, size, trainer)
                record = {"size": size, "trainer": trainer, "load": os.getloadavg()[0], **found}
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
                print(f"round {number + 1}, {size}, {trainer}: {found['steps'][-1]}", flush=True)


def _run(work: Path, size_name: str, trainer: str) -> dict[str, object]:
    """Return what a run of a trainer reports, without its first step."""
    size, folder, output = SIZES[size_name], work / size_name, work / "output.json"
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    owner, method, *variant = trainer.split()
    if owner == "ours":
        command = [sys.executable, "-m", "benchmarks.peers.ours", str(folder), size_name, method, str(output)]
        subprocess.run(["rm", "-rf", str(folder / f"ours-{method}")], check=True)
    else:
        job = {
            "folder": str(folder),
            "method": method,
            "cache": variant[0] if variant else None,
            "threads": 1,
            "prompts_per_step": size.prompts_per_step,
            "group_size": GROUP_SIZE,
            "num_steps": size.num_steps,
            "rows_per_microbatch": ROWS_PER_MICROBATCH,
            "max_response_tokens": MAX_RESPONSE_TOKENS,
            "output": str(output),
        }
        (work / "job.json").write_text(json.dumps(job))
        script = Path(__file__).with_name("trl_trainer.py")
        # TRL's process must not see this project's packages.
        environment.pop("PYTHONPATH", None)
        command = [str(work / "trl/bin/python"), str(script), str(work / "job.json")]
    with (work / "output.log").open("w") as log:
        output.unlink(missing_ok=True)
        code = subprocess.run(
            command, env=environment, stdout=log, stderr=log, timeout=TIMEOUT_S, check=False
        )
    if code.returncode or not output.exists():
        raise SystemExit(f"{trainer}, {size_name}: exit code {code.returncode}, see {work / 'output.log'}")
    found = json.loads(output.read_text())
    return {**found, "steps": found["steps"][1:]}


if __name__ == "__main__":
    main()
