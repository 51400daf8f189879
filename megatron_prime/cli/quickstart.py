"""The command `megatron-prime quickstart`: a complete training run on a CPU, beginning with a random model."""

import json
import shutil
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
from megatron_prime.quickstart.folder import DEFAULT_ROOT, prepare


def quickstart(options: Options) -> int:
    """Generate the task, fine-tune the model on it, run PRIME, and print a summary; return the exit code.

    Overrides apply to the PRIME run; those of [parallel], [platform] and [sft] apply to SFT too. An interrupted start
    resumes where it stopped.

    Raises:
        ValueError: the folder cannot be used.
    """
    started = time.monotonic()
    task: str = options.task
    root: Path = options.root or Path(DEFAULT_ROOT if task == TASKS[0] else f"{DEFAULT_ROOT}-{task}")
    if options.fresh:
        shutil.rmtree(root, ignore_errors=True)
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
    code = _run("train", config, [seed, *options.overrides])
    seconds = time.monotonic() - started
    if code == 0 and not is_quiet():
        _check_export(run / "hf")
        _report(task, run, config, seconds)
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


def _report(task: str, run: Path, config: Path, seconds: float) -> None:
    """Print a summary of the run's metrics."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    accuracy = [record["eval/accuracy"] for record in records if "eval/accuracy" in record]
    rollouts = sum(record.get("rollout/num_rollouts_sampled", 0) for record in records)
    table = Table("quickstart", "", title=f"PRIME on the task {task}")
    if accuracy:
        table.add_row("held-out accuracy before PRIME (temperature 1)", f"{accuracy[0]:.3f}")
        table.add_row("held-out accuracy after PRIME", f"{accuracy[-1]:.3f}")
    table.add_row("steps", str(records[-1]["step"]))
    table.add_row("rollouts", f"{rollouts:.0f}")
    table.add_row("seconds, total", f"{seconds:.0f}")
    table.add_row("TensorBoard", f"tensorboard --logdir {run / 'tensorboard'}")
    table.add_row("HF checkpoint", f"{run / 'hf'} (loaded by transformers)")
    table.add_row("configuration, to change", str(config))
    Console(markup=False, emoji=False).print(table)
