"""Run the parsed commands: check the configuration, then call the function of the command.

The configuration is checked before torch is imported and before any process group starts: exit code 2 and one line per
fault. An error during the run gives exit code 1; one for want of memory gives 71 (parallel.out_of_memory), and one
caused by the loss of another process of the job gives 69 (parallel.peer_loss).
"""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from megatron_prime.cli.arguments import USAGE_ERROR, Options
from megatron_prime.cli.launch import LAUNCHER, RESUMABLE, is_rank, launch
from megatron_prime.config.arithmetic import BatchArithmetic
from megatron_prime.config.loading import ConfigError, load_config
from megatron_prime.config.redaction import redact
from megatron_prime.config.run import PrimeConfig
from megatron_prime.parallel.out_of_memory import ADVICE, memory_that_ran_out
from megatron_prime.parallel.out_of_memory import EXIT_CODE as OUT_OF_MEMORY
from megatron_prime.preflight.checks import check_convert, check_run, command_of
from megatron_prime.preflight.plausibility import doubts
from megatron_prime.training.health.stop import EXIT_CODE as STOPPED
from megatron_prime.training.health.stop import RunStopped, listen

RUN_ERROR = 1
CHECKED_AS = {
    "train": "train",
    "sft": "sft",
    "eval": "evaluate",
    "eval-prm": "evaluate_prm",
    "rollout": "rollout",
    "train-prm": "train_prm",
    "serve-prm": "serve_prm",
}
"""Command -> the name by which preflight.checks knows it."""
RANK_FUNCTIONS = {
    "train": "train.train",
    "sft": "sft.sft",
    "eval": "evaluate.evaluate_checkpoint",
    "eval-prm": "prm.evaluation.evaluate_prm",
    "rollout": "rollout.sample_rollouts",
    "train-prm": "prm.training.train_prm",
}
"""Command that runs on every rank -> its module and function."""


def run_command(options: Options) -> int:
    """Run one command and return its exit code."""
    try:
        if options.command == "doctor" and options.config is None:
            return _doctor(None, options)
        run_alone = {
            "from-megatron": _from_megatron,
            "hf-to-megatron": _change_format,
            "megatron-to-hf": _change_format,
            "quickstart": _quickstart,
            "verify": _verify,
            "view": _view,
        }.get(options.command)
        if run_alone is not None:
            return run_alone(options)
        config = load_config(options.config, options.overrides)
        run_here = {"doctor": _doctor, "plan": _plan, "rehearse": _rehearse, "convert": _convert}.get(
            options.command
        )
        if run_here is not None:
            return run_here(config, options)
        # Before the checks, which refuse an output that exists.
        if options.command in ("sft", "train-prm") and _is_finished(config, options):
            return 0
        num_processes = _num_processes(config)
        command = CHECKED_AS.get(options.command) or _checked_command(config, options)
        arithmetic = check_run(config, num_processes, command, getattr(options, "replay_rollouts", None))
        if options.command == "check":
            return _check(config, arithmetic, command, options)
    except ConfigError as error:
        # Under torchrun every rank gets here. One rank per node reports: a file may be missing on one node only.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"megatron-prime: {error}", file=sys.stderr)  # noqa: T201
        return USAGE_ERROR
    if options.command in ("train", "train-prm") and options.dry_run:
        return _dry_run(options, config, arithmetic)
    if options.command == "serve-prm":
        return _guarded(lambda: _call("prm.serving.serve_prm", config, options))
    return _run(options, config, arithmetic)


def _call(function: str, *arguments: Any) -> Any:  # noqa: ANN401
    """Import "module.function" of this package only now, and call it: most modules import torch and Megatron."""
    module, _, name = function.rpartition(".")
    # Imports make millions of objects and hardly any garbage. Searching them for it takes up to a third of the time.
    # They stay, so later collections skip them: Megatron asks for one with each optimizer that it saves or loads.
    gc.disable()
    try:
        imported = import_module(f"megatron_prime.cli.{module}")
    finally:
        gc.freeze()
        gc.enable()
    return getattr(imported, name)(*arguments)


def _checked_command(config: PrimeConfig, options: Options) -> str:
    """Return the command that `check` is about."""
    return CHECKED_AS[options.target] if options.target else command_of(config)


def _check(config: PrimeConfig, arithmetic: BatchArithmetic, command: str, options: Options) -> int:
    """Try the run on its data, after everything that needs no import of seconds."""
    if command == "train":
        if not options.quiet:
            print("\n".join([*arithmetic.lines(), *config.notes()]), flush=True)  # noqa: T201
        _warn([*doubts(config, arithmetic), *_replay_doubts(config, options.replay_rollouts)])
    if command == "train_prm":
        _check_responses(config, options)
    elif command not in ("evaluate_prm", "serve_prm"):
        from megatron_prime.preflight.trial import try_run  # it imports transformers

        trial = try_run(config, command)
        if command == "train":
            trial.faults += _probe_faults(config)
        faults, waits = _ask_servers(config) if command != "sft" else ([], [])
        _warn([*trial.warnings, *waits])
        if trial.faults or faults:
            raise ConfigError("check", [*trial.faults, *faults])
    if not options.quiet:
        name = next(name for name, checked in CHECKED_AS.items() if checked == command)
        print("the configuration is sound" + (f" for {name}" if name != "train" else ""))  # noqa: T201
    return 0


def _check_responses(config: PrimeConfig, options: Options) -> None:
    """Read all responses that `train-prm` trains on, as it does itself."""
    from megatron_prime.preflight.prm_training import read_saved_groups

    try:
        groups = read_saved_groups(config)
    except ValueError as error:
        raise ConfigError("check", [str(error)]) from error
    if not options.quiet:
        print("\n".join(groups.notes), flush=True)  # noqa: T201


def _probe_faults(config: PrimeConfig) -> list[str]:
    """Return why the solutions of prm.probe cannot be read, as a run reads them."""
    if config.prm.probe is None:
        return []
    from megatron_prime.evaluation.probe_set import read_probe  # it imports transformers

    try:
        read_probe(config)
    except ValueError as error:
        return [str(error)]
    return []


def _replay_doubts(config: PrimeConfig, replay: Path | None) -> Iterable[str]:
    if replay is None:
        return ()
    from megatron_prime.preflight.replay import replay_doubts  # pyarrow takes a while to import.

    return replay_doubts(config, replay)


def _ask_servers(config: PrimeConfig) -> tuple[list[str], list[str]]:
    """Ask attached servers once; return why a run would end, and what it would wait for."""
    if not config.rollout.attached_urls:
        return [], []
    from megatron_prime.engines.sglang.fleet import ask_attached  # it imports torch

    return asyncio.run(ask_attached(config.rollout.sglang))


def _warn(lines: Iterable[str]) -> None:
    for line in lines:
        print(f"WARNING: {redact(line)}", file=sys.stderr, flush=True)  # noqa: T201


def _doctor(config: PrimeConfig | None, options: Options) -> int:
    from megatron_prime.preflight.doctor import doctor

    return doctor(config, options.timeout_s)


def _dry_run(options: Options, config: PrimeConfig, arithmetic: BatchArithmetic) -> int:
    output = None if options.dry_run == "-" else Path(options.dry_run)
    file, overrides = options.config, options.overrides
    lines = _call("dry_run.dry_run", config, arithmetic, file, overrides, output, options.command)
    print("\n".join(lines))  # noqa: T201
    return 0


def _run(options: Options, config: PrimeConfig, arithmetic: BatchArithmetic) -> int:
    if options.command == "train" and _is_finished(config, options):
        return 0
    # Our own launcher has warned before it started the ranks.
    if options.command == "train" and os.environ.get("RANK", "0") == "0" and LAUNCHER not in os.environ:
        _warn([*doubts(config, arithmetic), *_replay_doubts(config, options.replay_rollouts)])
    is_resumable = options.command in RESUMABLE
    if not is_rank() and arithmetic.num_processes > 1:
        words = [options.command, str(options.config), *options.overrides, *_own_options(options)]
        return launch(words, arithmetic.num_processes, is_resumable)
    if is_resumable:
        listen()
    own = {"train": ["replay_rollouts"], "rollout": ["steps"]}.get(options.command, [])
    values = [getattr(options, name) for name in own]
    return _guarded(lambda: _call(RANK_FUNCTIONS[options.command], config, arithmetic, *values))


def _own_options(options: Options) -> list[str]:
    """Return the options that the ranks of a command need."""
    if options.command == "train" and options.replay_rollouts is not None:
        return ["--replay-rollouts", str(options.replay_rollouts)]
    return ["--steps", str(options.steps)] if options.command == "rollout" else []


def _is_finished(config: PrimeConfig, options: Options) -> bool:
    """Return whether a run has nothing left to do, and say so."""
    from megatron_prime.training.checkpoint.finished import finished_note

    note = finished_note(config, CHECKED_AS[options.command])
    if note is not None and not options.quiet and os.environ.get("RANK", "0") == "0":
        print(note, flush=True)  # noqa: T201
    return note is not None


def _convert(config: PrimeConfig, options: Options) -> int:
    check_convert(config, options.role, options.checkpoint, options.output)
    if os.environ.get("RANK", "0") != "0":
        return 0  # a single process reads and writes, and starts workers of its own
    settings = (options.role, options.checkpoint, options.output, options.dtype, options.workers)
    return _guarded(lambda: _call("convert.convert", config, *settings, options.compare_logits))


def _plan(config: PrimeConfig, options: Options) -> int:
    try:
        return _call("plan.plan", config, options)
    except (ValueError, OSError) as error:  # OSError: the file of --json
        raise ConfigError("plan", str(error).splitlines()) from error


def _rehearse(config: PrimeConfig, options: Options) -> int:
    # Megatron is imported with the command: it compiles its fused functions unless this is set before.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    try:
        return _call("rehearse.rehearse_run", config, options)
    except (ValueError, OSError) as error:  # OSError: the file of --json
        raise ConfigError("rehearse", str(error).splitlines()) from error


def _from_megatron(options: Options) -> int:
    print("\n".join(_call("from_megatron.from_megatron", options)))  # noqa: T201
    return 0


def _verify(options: Options) -> int:
    return _call("verify.verify", options)


def _change_format(options: Options) -> int:
    try:
        _call(f"formats.{options.command.replace('-', '_')}", options)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"megatron-prime {options.command}: {redact(str(error))}", file=sys.stderr)  # noqa: T201
        return USAGE_ERROR
    return 0


def _view(options: Options) -> int:
    return _call("view.view", options)


def _quickstart(options: Options) -> int:
    try:
        return _call("quickstart.quickstart", options)
    except (ValueError, OSError) as error:  # the folder cannot be used
        raise ConfigError("quickstart", [str(error)]) from error


def _guarded(run: Callable[[], None]) -> int:
    """Run a command and return its exit code.

    Errors that a user can fix are printed as one line; any other exception is a bug and keeps its traceback.
    """
    try:
        run()
    except RunStopped as stopped:
        # The launcher asks all ranks again once the first has ended, while this one may still be leaving the job.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.environ.get("RANK", "0") == "0":
            print(stopped, flush=True)  # noqa: T201
        return STOPPED
    except (ValueError, OSError, RuntimeError, FloatingPointError, MemoryError) as error:
        if os.environ.get("MEGATRON_PRIME_TRACEBACK"):
            raise
        rank = os.environ.get("RANK", "0")
        # Most errors occur on all ranks alike, so only rank 0 prints the whole message.
        shown = redact(str(error))
        text = f"{shown}\n  (MEGATRON_PRIME_TRACEBACK=1 shows where)" if rank == "0" else shown[:200]
        print(f"megatron-prime, rank {rank}: {type(error).__name__}: {text}", file=sys.stderr)  # noqa: T201
        memory = memory_that_ran_out(error)
        if memory is not None:
            # Ranks need different amounts, so any of them may be the only one to say it.
            print(f"megatron-prime, rank {rank}: out of {memory}: {ADVICE[memory]}", file=sys.stderr)  # noqa: T201
            return OUT_OF_MEMORY
        return _exit_code(error)
    return 0


def _exit_code(error: Exception) -> int:
    """Return the exit code of a run that ended with this error."""
    if "torch" not in sys.modules:
        return RUN_ERROR
    from megatron_prime.parallel.peer_loss import EXIT_CODE, is_peer_loss

    return EXIT_CODE if is_peer_loss(error) else RUN_ERROR


def _num_processes(config: PrimeConfig) -> int:
    """Return the number of processes of the job, from torchrun or Slurm if started by one, else the configuration."""
    if is_rank():
        return int(os.environ["WORLD_SIZE"])
    return config.parallel.num_processes or config.parallel.min_processes
