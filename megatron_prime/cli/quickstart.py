"""The command `megatron-prime quickstart`: a complete training run on a CPU, beginning with a random model."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from megatron_prime.cli.arguments import Options
from megatron_prime.config.quiet import is_quiet
from megatron_prime.quickstart import TASKS
from megatron_prime.quickstart.folder import DEFAULT_ROOT, clear, prepare

GOALS = (0.5, 0.7)
"""Accuracies for which the summary counts rollouts."""
WINDOW = 4
"""Steps whose mean accuracy has to reach a goal: that of one step is noisy."""


def quickstart(options: Options) -> int:
    """Generate the task, fine-tune the model on it, run PRIME, and print a summary; return the exit code.

    Overrides apply to the training runs; those of [parallel], [platform] and [sft] apply to SFT too. An interrupted
    start resumes where it stopped.

    Raises:
        ValueError: the folder cannot be used.
    """
    started = time.monotonic()
    task: str = options.task
    root: Path = options.root or Path(DEFAULT_ROOT if task == TASKS[0] else f"{DEFAULT_ROOT}-{task}")
    if options.fresh:
        clear(root)
    config = prepare(root, options.seed, task)
    run = root / "prime"
    for override in options.overrides:
        key, _, value = override.partition("=")
        if key.strip() == "run_dir":
            run = Path(value.strip().strip("\"'"))
    seed = f"seed={options.seed}"
    if not (root / "sft").exists():
        shared = [
            text for text in options.overrides if text.strip().startswith(("parallel.", "platform.", "sft."))
        ]
        inputs = [f"model.path={root / 'task' / 'model'}", f"run_dir={root / 'sft_run'}"]
        code = _run("sft", config, [seed, *inputs, *shared])
        if code:
            return code
    runs = {"PRIME": run}
    compared = [seed, *options.overrides, f"run_dir={root / 'outcome'}", "prm.enabled=false"]
    if options.compare:
        # An override may need the PRM, which the second run would say only after the first one.
        code = _run("check", config, ["--quiet", *compared])
        if code:
            return code
    code = _run("train", config, [seed, *options.overrides])
    if code == 0 and options.compare:
        runs["outcome rewards alone"] = root / "outcome"
        code = _run("train", config, compared)
    seconds = time.monotonic() - started
    if code == 0 and not is_quiet():
        _check_export(run / "hf")
        _report(task, runs, config, seconds)
    return code


def _run(name: str, config: Path, overrides: list[str]) -> int:
    """Run a megatron-prime command and return its exit code."""
    process = subprocess.Popen([sys.executable, "-m", "megatron_prime", name, str(config), *overrides])
    # A Ctrl-C reaches the command too, which needs time to save; a SIGTERM, as of `docker stop`, only this process.
    before = (
        signal.signal(signal.SIGINT, lambda *_: None),
        signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number)),
    )
    try:
        code = process.wait()
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
    return code if code >= 0 else 128 - code


def _check_export(folder: Path) -> None:
    """Check that transformers loads the exported checkpoint."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(folder)
    AutoTokenizer.from_pretrained(folder)


def _report(task: str, runs: dict[str, Path], config: Path, seconds: float) -> None:
    """Print a summary of the metrics of the runs, each in a column."""
    columns = [_summary(run) for run in runs.values()]
    table = Table(
        "quickstart",
        *(runs if len(runs) > 1 else ("",)),
        title=f"the task {task}, accuracies at temperature 1",
    )
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    console = Console(markup=False, emoji=False)
    console.print(table)
    run = runs["PRIME"]
    ends = Table(show_header=False)
    ends.add_row("seconds, total", f"{seconds:.0f}")
    ends.add_row("TensorBoard", f"tensorboard --logdir {run / 'tensorboard'}")
    ends.add_row("HF checkpoint", f"{run / 'hf'} (loaded by transformers)")
    ends.add_row("configuration, to change", str(config))
    console.print(ends)
    if len(runs) > 1:
        console.print(
            "Both runs have the same seed, problems and settings, chosen for PRIME. One seed proves nothing: "
            "docs/learning.md has many, tuned methods, and tasks on which process rewards do not help."
        )


def _summary(run: Path) -> dict[str, str]:
    """Return what the metrics of a run say, by the name of a row."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    accuracy = [record["eval/accuracy"] for record in records if "eval/accuracy" in record] or [math.nan]
    steps = [record for record in records if "rollout/num_rollouts_sampled" in record]
    return {
        "held-out accuracy at the start": f"{accuracy[0]:.3f}",
        "held-out accuracy at the end": f"{accuracy[-1]:.3f}",
        **{f"rollouts to an accuracy of {goal}": _rollouts_to(goal, steps) for goal in GOALS},
        "steps": str(records[-1]["step"]),
        "rollouts": f"{sum(record['rollout/num_rollouts_sampled'] for record in steps):.0f}",
        "seconds of steps": f"{sum(record['time/step_s'] for record in steps):.0f}",
    }


def _rollouts_to(goal: float, steps: list[dict[str, float]]) -> str:
    """Return the number of rollouts until the mean accuracy of WINDOW steps, on new problems, has reached a goal."""
    rollouts = 0.0
    for place, record in enumerate(steps):
        rollouts += record["rollout/num_rollouts_sampled"]
        window = [each["rollout/accuracy_sampled"] for each in steps[max(0, place + 1 - WINDOW) : place + 1]]
        if len(window) == WINDOW and sum(window) / WINDOW >= goal:
            return f"{rollouts:.0f}"
    return "not reached"
