"""Compare training speed to the same HF model, and measure the share of a step that is not model compute.

    python -m benchmarks.training [--quick] [--speed]      # about two minutes on two cores

1. Tokens per second of scoring and of forward + backward, with one and two processes: this project with packing, and
   transformers with sdpa on the same weights and tokens. The methods alternate within one run. With two processes also
   what each process computes, and what its collectives take when they are repeated with nothing in between.
2. A toy run through the command line: seconds of each phase by the trainer's own timers, and the part of them spent in
   the models (sampling, forward and backward passes, optimizer steps).
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.training.methods import measure

ROOT = Path(__file__).parents[2]
TOY_STEPS = 8
PHASES = ("rollout", "logprobs", "prm", "advantage", "policy", "weight_sync")
COMPUTE_PHASES = ("rollout", "logprobs", "prm", "policy")


def main() -> None:
    """Run both parts and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one repeat, a shorter toy run")
    parser.add_argument("--speed", action="store_true", help="the first part alone")
    parser.add_argument("--toy", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.toy:
        sys.exit(_toy_run(options.toy, TOY_STEPS // 2 if options.quick else TOY_STEPS))
    for num_processes in (1, 2):
        found = measure(num_processes, repeats=1 if options.quick else 5)
        print(speed_table(num_processes, found), flush=True)
    print(parts_table(found), flush=True)
    if options.speed:
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "benchmarks.training",
            "--toy",
            folder,
            *["--quick"] * options.quick,
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        records = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
        inside = json.loads(Path(folder, "inside.json").read_text())
        print(overhead_table(records[1:], inside[1:]))  # the first step is a warm-up


def speed_table(num_processes: int, found: dict[str, Any]) -> str:
    """Return a table of medians, relative to HF with one sequence at a time on the same number of processes."""
    base = found["methods"]["HF, one sequence at a time"]
    lines = [
        f"\n## {num_processes} process{'es' * (num_processes > 1)}: {found['num_rows']} rows, {found['tokens']} tokens "
        f"({found['padded_tokens']} padded in eights)\n",
        "| method | scoring tokens/s | of HF | forward + backward tokens/s | of HF |",
        "| --- | --- | --- | --- | --- |",
    ]
    for method, seconds in found["methods"].items():
        figures = (
            f"{found['tokens'] / seconds[kind]:,.0f} | {base[kind] / seconds[kind]:.2f}"
            for kind in ("score", "train")
        )
        lines.append(f"| {method} | {' | '.join(figures)} |")
    return "\n".join(lines)


def parts_table(found: dict[str, Any]) -> str:
    """Return a table of what rank 0 computes, and of its collectives by themselves."""
    lines = [
        "\n| method, pass | computing, CPU s | collectives alone, s | their CPU s | number | MB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, part in found["parts"].items():
        lines.append(
            f"| {name} | {part['computing_cpu_s']:.2f} | {part['collectives_s']:.3f} | "
            f"{part['collectives_cpu_s']:.3f} | {part['num_collectives']:.0f} | {part['mb']:.0f} |"
        )
    return "\n".join(lines)


def overhead_table(records: list[dict[str, float]], inside: list[dict[str, float]]) -> str:
    """Return a table of the mean seconds of a step by phase, with the part spent inside the models."""
    step = statistics.mean(record["time/step_s"] for record in records)
    lines = [
        f"\n## A step of the toy run ({step:.3f} s, mean of {len(records)} steps)\n",
        "| phase | s | of the step | in the models s |",
        "| --- | --- | --- | --- |",
    ]
    total = total_inside = compute = 0.0
    for phase in PHASES:
        seconds = statistics.mean(record[f"time/{phase}_s"] for record in records)
        within = statistics.mean(step_inside.get(phase, 0.0) for step_inside in inside)
        lines.append(f"| {phase} | {seconds:.4f} | {seconds / step:.1%} | {within:.4f} |")
        total, total_inside = total + seconds, total_inside + within
        compute += seconds if phase in COMPUTE_PHASES else 0.0
    lines.append(f"| between phases | {step - total:.4f} | {1 - total / step:.1%} | |")
    lines += [
        "",
        f"Outside rollout, logprobs, prm and policy phases: {1 - compute / step:.1%} of the step.",
        f"Outside the models, those phases' own overhead counted: {1 - total_inside / step:.1%} of the step.",
    ]
    return "\n".join(lines)


def _toy_run(folder: Path, num_steps: int) -> int:
    """Train on the arithmetic task in this process, and time the work inside the models."""
    from megatron_prime.cli import main as command_line
    from megatron_prime.engines.local.engine import LocalEngine
    from megatron_prime.models import forward
    from megatron_prime.observability import heartbeat
    from megatron_prime.quickstart.arithmetic_task import write_all
    from megatron_prime.quickstart.folder import CONFIG
    from megatron_prime.training.trainable import Trainable
    from megatron_prime.training.trainer import Trainer

    steps: list[dict[str, float]] = []
    depth = 0  # Timed functions may call each other; only the outermost one is counted.

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            start, depth = time.perf_counter(), depth + 1
            phase = heartbeat.current().phase
            try:
                return function(*args, **kwargs)
            finally:
                depth -= 1
                if steps and not depth:
                    steps[-1][phase] = steps[-1].get(phase, 0.0) + time.perf_counter() - start

        return run

    step, build = Trainer.step, Trainable.__init__

    def counted_step(self):
        steps.append({})
        return step(self)

    def build_timed(self, *args, **kwargs):
        build(self, *args, **kwargs)
        self.optimizer.step = timed(self.optimizer.step)

    # Timers are attached to the functions from outside, so that the product contains no benchmark code.
    schedule = forward.get_forward_backward_func
    forward.get_forward_backward_func = lambda: timed(schedule())
    LocalEngine.generate = timed(LocalEngine.generate)
    Trainer.step, Trainable.__init__ = counted_step, build_timed
    write_all(folder / "task", seed=0)
    code = command_line(
        [
            "train",
            str(CONFIG),
            f"run_dir={folder / 'run'}",
            f"model.path={folder / 'task' / 'model'}",
            f'data.train=["{folder / "task" / "train.jsonl"}"]',
            "data.evaluation=[]",
            "parallel.tensor=1",
            "filter.enabled=false",
            f"trainer.num_steps={num_steps}",
            "checkpoint.export_hf=false",
        ]
    )
    (folder / "inside.json").write_text(json.dumps(steps))
    return code


if __name__ == "__main__":
    main()
