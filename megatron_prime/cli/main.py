"""`megatron-prime COMMAND CONFIG [section.key=value ...]`.

Everything that can be known to be wrong is found here, before torch is imported and before any process group starts:
exit code 2 and one line a fault. A fault during the run gives exit code 1.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from megatron_prime import __version__
from megatron_prime.cli.launch import die_with_launcher, is_rank, launch
from megatron_prime.cli.plan import add_arguments as add_plan_arguments
from megatron_prime.config.arithmetic import BatchArithmetic
from megatron_prime.config.checks import check_convert, check_run
from megatron_prime.config.loading import ConfigError, load_config
from megatron_prime.config.schema import PrimeConfig
from megatron_prime.models.hf_config import FAMILY_TRAITS
from megatron_prime.rewards import names as verifier_names

USAGE_ERROR = 2
RUN_ERROR = 1
CHECKED_AS = {
    "train": "train",
    "sft": "sft",
    "eval": "evaluate",
    "eval-prm": "evaluate_prm",
    "check": "train",
}
"""Command -> what config.checks calls it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    # Models and data are local: a look-up on a hub would hang on a cluster's compute nodes.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    die_with_launcher()
    options = _parser().parse_args(arguments)
    try:
        config = load_config(options.config, options.overrides)
        if options.command == "plan":
            return _plan(config, options)
        if options.command == "convert":
            check_convert(config, options.role, options.checkpoint, options.output)
            return _convert(config, options)
        num_processes = _num_processes(config)
        arithmetic = check_run(
            config,
            num_processes,
            CHECKED_AS[options.command],
            verifiers=verifier_names(),
            model_types=tuple(FAMILY_TRAITS),
        )
    except ConfigError as error:
        # Under torchrun every rank gets here; one a node tells it (a file may be missing on one node alone).
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"megatron-prime: {error}", file=sys.stderr)  # noqa: T201
        return USAGE_ERROR
    if options.command == "check":
        print("\n".join([*arithmetic.lines(), "the configuration is sound"]))  # noqa: T201
        return 0
    return _run(options, config, arithmetic)


def _run(options: argparse.Namespace, config: PrimeConfig, arithmetic: BatchArithmetic) -> int:
    if not is_rank() and arithmetic.num_processes > 1:
        return launch([options.command, str(options.config), *options.overrides], arithmetic.num_processes)
    return _guarded(lambda: _command(options.command)(config, arithmetic))


def _command(name: str) -> Callable[[PrimeConfig, BatchArithmetic], None]:
    """Import a command's module only now: each brings torch and Megatron along."""
    if name == "train":
        from megatron_prime.cli.train import train

        return train
    if name == "sft":
        from megatron_prime.cli.sft import sft

        return sft
    if name == "eval-prm":
        from megatron_prime.cli.evaluate_prm import evaluate_prm

        return evaluate_prm
    from megatron_prime.cli.evaluate import evaluate_checkpoint

    return evaluate_checkpoint


def _convert(config: PrimeConfig, options: argparse.Namespace) -> int:
    from megatron_prime.cli.convert import convert

    if os.environ.get("RANK", "0") != "0":
        return 0  # one process reads and writes, or starts workers of its own
    return _guarded(
        lambda: convert(
            config,
            options.role,
            options.checkpoint,
            options.output,
            options.dtype,
            options.workers,
            options.compare_logits,
        )
    )


def _plan(config: PrimeConfig, options: argparse.Namespace) -> int:
    from megatron_prime.cli.plan import plan

    try:
        return plan(config, options)
    except ValueError as error:
        raise ConfigError("plan", str(error).splitlines()) from error


def _guarded(run: Callable[[], None]) -> int:
    """Turn the faults that a person can mend into one line; everything else is ours, with its traceback."""
    try:
        run()
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        if os.environ.get("MEGATRON_PRIME_TRACEBACK"):
            raise
        rank = os.environ.get("RANK", "0")
        # Most faults meet all ranks alike: one of them tells the whole of it.
        text = f"{error}\n  (MEGATRON_PRIME_TRACEBACK=1 shows where)" if rank == "0" else str(error)[:200]
        print(f"megatron-prime, rank {rank}: {type(error).__name__}: {text}", file=sys.stderr)  # noqa: T201
        return RUN_ERROR
    return 0


def _num_processes(config: PrimeConfig) -> int:
    """Processes of the job: torchrun's or Slurm's word first, then the configuration's."""
    if is_rank():
        return int(os.environ["WORLD_SIZE"])
    return config.parallel.num_processes or config.parallel.min_processes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="megatron-prime", description="PRIME (arXiv 2502.01456) on Megatron-core."
    )
    parser.add_argument("--version", action="version", version=f"megatron-prime {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("train", "run PRIME; continues by itself from the newest checkpoint of run_dir"),
        ("sft", "warm the policy up on demonstrations and write an HF checkpoint"),
        ("eval", "sample on the held-out prompts and benchmarks from model.path and report accuracy"),
        ("eval-prm", "judge prm.path against reference.path: best of N, ProcessBench, pairs"),
        ("check", "find every fault of a training configuration, and print its batch arithmetic"),
        (
            "plan",
            "say what a run needs and takes, without a GPU: memory, time, weight sync, layouts that fit",
        ),
        ("convert", "write a model of a training checkpoint as an HF checkpoint"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("config", type=Path, help="TOML file")
        if name == "convert":
            command.add_argument("--role", choices=("policy", "prm"), default="policy")
            command.add_argument(
                "--checkpoint", type=Path, help="default: the newest complete one of run_dir"
            )
            command.add_argument("--output", type=Path, required=True, help="folder to write; must not exist")
            command.add_argument("--dtype", choices=("keep", "fp32", "bf16", "fp16"), default="keep")
            command.add_argument("--workers", type=int, default=1, help="processes; each holds one tensor")
            command.add_argument(
                "--compare-logits", action="store_true", help="run both models on a short sequence, in memory"
            )
        if name == "plan":
            add_plan_arguments(command)
        command.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser
