"""Compare outcome rewards alone with PRIME on the chain with remarks, in runs of the product.

    python -m benchmarks.turn_credit --root runs/turn_credit [--seeds 21 22 23 24 25] [--methods NAME ...] [--report]

For each seed it generates the task (`megatron-prime quickstart --task chain`), fine-tunes the model, and runs
`megatron-prime train` with each method, one process on one core each, four to six minutes a run on a busy machine. Runs
that are finished are not repeated. `--report` prints the table of the runs that exist, and starts none.

The accuracy during a run is that of the responses that it samples: each step has new problems, and no method filters
them before they are counted. It is averaged over WINDOW steps. A run crosses a threshold at the number of rollouts
sampled up to the end of the first window that reaches it.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_prime.quickstart.folder import prepare

OUTCOME = ("prm.enabled=false", "advantage.process_credit=own", "advantage.process_trust=full")
METHODS: dict[str, tuple[str, ...]] = {
    "outcome": OUTCOME,
    "outcome_fast": (*OUTCOME, "policy.lr=1.2e-3"),
    "outcome_all": (*OUTCOME, "filter.enabled=false"),
    "hindsight": (),
    "released": (
        "advantage.process_credit=own",
        "advantage.process_normalization=batch_max",
        "advantage.whitening=joint",
        "advantage.process_trust=full",
        "advantage.gamma_process=1.0",
    ),
}
"""Settings that differ from those of quickstart/chain.toml: RLOO on outcomes alone, as it
is and with one setting changed; PRIME with hindsight credit; and
the released estimator of PRIME on the same sequences."""
NAMES = {
    "outcome": "outcome rewards alone (RLOO)",
    "outcome_fast": "outcome rewards alone, lr 1.2e-3",
    "outcome_all": "outcome rewards alone, no filter",
    "hindsight": "PRIME, hindsight credit",
    "released": "PRIME, released estimator",
}
SHARED = ("trainer.num_steps=40", "trainer.eval_every=0", "checkpoint.save_every=1000")
THRESHOLDS = (0.5, 0.7, 0.8)
WINDOW = 4
HELD_OUT_SEEDS = (21, 22, 23, 24, 25)
T_QUANTILES = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36)
"""97.5 % quantiles of Student's distribution with 1 to 7 degrees of freedom."""


@dataclass(frozen=True)
class Curve:
    """The accuracy of one run over its rollouts."""

    rollouts: tuple[float, ...]
    """Responses sampled up to each step."""
    accuracy: tuple[float, ...]
    """Accuracy of the responses of each step."""
    held_out: float
    """Accuracy on held-out problems at the end."""
    seconds: float
    """Seconds of all steps."""

    def crossing(self, threshold: float) -> float | None:
        """Return the rollouts up to the end of the first window with this accuracy; None if there is none."""
        for end in range(WINDOW, len(self.accuracy) + 1):
            if statistics.fmean(self.accuracy[end - WINDOW : end]) >= threshold:
                return self.rollouts[end - 1]
        return None


def read_curve(run: Path) -> Curve | None:
    """Return the curve of a finished run; None if it is not finished."""
    metrics = run / "metrics.jsonl"
    if not (run / "hf").exists() or not metrics.exists():
        return None
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    steps = [record for record in records if "rollout/accuracy_sampled" in record]
    sampled, rollouts = 0.0, []
    for step in steps:
        sampled += step["rollout/num_rollouts_sampled"]
        rollouts.append(sampled)
    held_out = [record["eval/accuracy"] for record in records if "eval/accuracy" in record]
    return Curve(
        tuple(rollouts),
        tuple(step["rollout/accuracy_sampled"] for step in steps),
        held_out[-1],
        sum(step["time/step_s"] for step in steps),
    )


def run(root: Path, seed: int, methods: Sequence[str]) -> None:
    """Run what is missing of one seed."""
    folder = root / f"seed{seed}"
    config = prepare(folder, seed, "chain")
    shared = [f"seed={seed}", *SHARED]
    if not (folder / "sft").exists():
        model = tomllib.loads(config.read_text(encoding="utf-8"))["model"]["path"]
        assert model == str(folder / "sft")
        start = [f"model.path={folder / 'task/model'}", f"run_dir={folder / 'sft_run'}", f"seed={seed}"]
        _command("sft", config, start)
    for method in methods:
        if read_curve(folder / method) is None:
            _command("train", config, [*shared, f"run_dir={folder / method}", *METHODS[method]])


def _command(name: str, config: Path, overrides: Sequence[str]) -> None:
    subprocess.run([sys.executable, "-m", "megatron_prime", name, str(config), *overrides], check=True)


def interval(values: Sequence[float]) -> str:
    """Return mean and half width of the 95 % t-interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.3g}"
    half = T_QUANTILES[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    digits = 0 if mean > 10 else 3
    return f"{mean:,.{digits}f} ± {half:,.{digits}f}"


def table(root: Path, seeds: Sequence[int], methods: Sequence[str]) -> list[str]:
    """Return the lines of a Markdown table over the finished runs."""
    lines = [
        "| method | seeds | held-out accuracy | "
        + " | ".join(f"rollouts to {threshold}" for threshold in THRESHOLDS)
        + " | seconds |",
        "|---" * (4 + len(THRESHOLDS)) + "|",
    ]
    for method in methods:
        found = [read_curve(root / f"seed{seed}" / method) for seed in seeds]
        curves = [curve for curve in found if curve is not None]
        if not curves:
            continue
        cells = [NAMES[method], str(len(curves)), interval([curve.held_out for curve in curves])]
        for threshold in THRESHOLDS:
            crossings = [curve.crossing(threshold) for curve in curves]
            # A run that never gets there counts with all its rollouts, so that the mean is a lower bound.
            counted = [
                curve.rollouts[-1] if crossing is None else crossing
                for curve, crossing in zip(curves, crossings, strict=True)
            ]
            never = crossings.count(None)
            cells.append(interval(counted) + (f" ({never} never)" if never else ""))
        cells.append(interval([curve.seconds for curve in curves]))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Compare outcome rewards alone with PRIME on the chain with remarks."
    )
    parser.add_argument("--root", type=Path, default=Path("runs/turn_credit"), help="folder of all runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=HELD_OUT_SEEDS)
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=("outcome", "hindsight"))
    parser.add_argument("--report", action="store_true", help="print the table of the runs that exist")
    arguments = parser.parse_args()
    if not arguments.report:
        for seed in arguments.seeds:
            run(arguments.root, seed, arguments.methods)
    print("\n".join(table(arguments.root, arguments.seeds, arguments.methods)))


if __name__ == "__main__":
    main()
