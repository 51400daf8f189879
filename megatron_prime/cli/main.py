"""`megatron-prime COMMAND CONFIG [section.key=value ...]`.

Everything that can be known to be wrong is found here, before torch is imported and before any process group starts:
exit code 2 and one line a fault. A fault during the run gives exit code 1; one that comes of another process of the job
being lost, 69 (parallel.peer_loss).
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from megatron_prime.cli.arguments import parser
from megatron_prime.cli.launch import die_with_launcher, is_rank, launch
from megatron_prime.config.arithmetic import BatchArithmetic
from megatron_prime.config.loading import ConfigError, load_config
from megatron_prime.config.run import PrimeConfig
from megatron_prime.preflight.checks import check_convert, check_run

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
    options = parser().parse_args(arguments)
    try:
        if options.command == "doctor" and options.config is None:
            return _doctor(None, options)
        if options.command == "from-megatron":
            return _from_megatron(options)
        config = load_config(options.config, options.overrides)
        if options.command == "doctor":
            return _doctor(config, options)
        if options.command == "plan":
            return _plan(config, options)
        if options.command == "convert":
            check_convert(config, options.role, options.checkpoint, options.output)
            return _convert(config, options)
        num_processes = _num_processes(config)
        arithmetic = check_run(config, num_processes, CHECKED_AS[options.command])
    except ConfigError as error:
        # Under torchrun every rank gets here; one a node tells it (a file may be missing on one node alone).
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"megatron-prime: {error}", file=sys.stderr)  # noqa: T201
        return USAGE_ERROR
    if options.command == "check":
        print("\n".join([*arithmetic.lines(), "the configuration is sound"]))  # noqa: T201
        return 0
    if options.command == "train" and options.dry_run:
        return _dry_run(options, config, arithmetic)
    return _run(options, config, arithmetic)


def _from_megatron(options: argparse.Namespace) -> int:
    from megatron_prime.cli.from_megatron import from_megatron

    print("\n".join(from_megatron(options)))  # noqa: T201
    return 0


def _doctor(config: PrimeConfig | None, options: argparse.Namespace) -> int:
    from megatron_prime.preflight.doctor import doctor

    return doctor(config, options.timeout_s)


def _dry_run(options: argparse.Namespace, config: PrimeConfig, arithmetic: BatchArithmetic) -> int:
    from megatron_prime.cli.dry_run import dry_run

    output = None if options.dry_run == "-" else Path(options.dry_run)
    print("\n".join(dry_run(config, arithmetic, options.config, options.overrides, output)))  # noqa: T201
    return 0


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
        return _exit_code(error)
    return 0


def _exit_code(error: Exception) -> int:
    """Of a run that ended with this."""
    if "torch" not in sys.modules:
        return RUN_ERROR
    from megatron_prime.parallel.peer_loss import EXIT_CODE, is_peer_loss

    return EXIT_CODE if is_peer_loss(error) else RUN_ERROR


def _num_processes(config: PrimeConfig) -> int:
    """Processes of the job: torchrun's or Slurm's word first, then the configuration's."""
    if is_rank():
        return int(os.environ["WORLD_SIZE"])
    return config.parallel.num_processes or config.parallel.min_processes
