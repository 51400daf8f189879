"""A complete training run on a CPU machine: random model, generated data, SFT, PRIME, evaluation before and after.

    python -m examples.quickstart [section.key=value ...]

Overrides apply to the PRIME run, e.g. `prm.enabled=false` for outcome rewards only; those of [parallel] and [sft],
e.g. `parallel.tensor=1`, apply to SFT too. All steps use the `megatron-prime` command line with
examples/quickstart.toml. An interrupted run resumes where it stopped; --fresh starts from scratch.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from examples.arithmetic_task import write_all

HERE = Path(__file__).parent
CONFIG = HERE / "quickstart.toml"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path("runs/quickstart"), help="folder for all files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="remove the files of an earlier quickstart")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args()
    if options.fresh:
        shutil.rmtree(options.root, ignore_errors=True)
    task, warm, run = options.root / "task", options.root / "sft", options.root / "prime"
    for override in options.overrides:
        key, _, value = override.partition("=")
        if key.strip() == "run_dir":
            run = Path(value.strip().strip("\"'"))
    started = time.monotonic()
    if not task.exists():
        make_task(task, options.seed)
    shared = [f"seed={options.seed}"]
    if not warm.exists():
        warm_up = [
            f"model.path={task / 'model'}",
            f"sft.output={warm}",
            f"run_dir={options.root / 'sft_run'}",
        ]
        layout = [text for text in options.overrides if text.strip().startswith(("parallel.", "sft."))]
        command("sft", [*shared, *warm_up, f'sft.data=["{task / "sft.jsonl"}"]', *layout])
    command(
        "train",
        [
            *shared,
            f"model.path={warm}",
            f"run_dir={run}",
            f'data.train=["{task / "train.jsonl"}"]',
            f'data.evaluation=["{task / "heldout.jsonl"}"]',
            *options.overrides,
        ],
    )
    seconds = time.monotonic() - started
    check_export(run / "hf")
    report(run, seconds)
    return 0


def make_task(folder: Path, seed: int) -> None:
    """Write the task to a temporary folder and rename it, so that an interruption leaves no incomplete task."""
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    write_all(temporary, seed)
    temporary.rename(folder)


def command(name: str, overrides: list[str]) -> None:
    """Run a megatron-prime command; if it fails or is asked to stop, exit with its exit code."""
    # A Ctrl-C reaches the command too, which needs time to save. A handler, unlike SIG_IGN, is not inherited.
    signal.signal(signal.SIGINT, lambda *_: None)
    code = subprocess.Popen([sys.executable, "-m", "megatron_prime", name, str(CONFIG), *overrides]).wait()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if code:
        sys.exit(code)


def check_export(folder: Path) -> None:
    """Check that transformers loads the exported checkpoint."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(folder)
    AutoTokenizer.from_pretrained(folder)


def report(run: Path, seconds: float) -> None:
    """Print a summary table from the run's metrics."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    accuracy = [record["eval/accuracy"] for record in records if "eval/accuracy" in record]
    rollouts = sum(record.get("rollout/num_rollouts_sampled", 0) for record in records)
    table = Table("quickstart", "", title="PRIME on the arithmetic task")
    table.add_row("held-out accuracy before PRIME (temperature 1)", f"{accuracy[0]:.3f}")
    table.add_row("held-out accuracy after PRIME", f"{accuracy[-1]:.3f}")
    table.add_row("steps", str(records[-1]["step"]))
    table.add_row("rollouts", f"{rollouts:.0f}")
    table.add_row("seconds, total", f"{seconds:.0f}")
    table.add_row("TensorBoard", f"tensorboard --logdir {run / 'tensorboard'}")
    table.add_row("HF checkpoint", f"{run / 'hf'} (loaded by transformers)")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
