"""Run every check of a command before a process group starts.

The modules import no framework, so that a login node reports in milliseconds what a cluster job would otherwise fail on
after its time in the queue.
"""

from collections.abc import Iterator
from pathlib import Path

from megatron_prime.config.arithmetic import BatchArithmetic
from megatron_prime.config.loading import ConfigError
from megatron_prime.config.run import PrimeConfig
from megatron_prime.preflight.algorithm import (
    algorithm_faults,
    critic_command_faults,
    objective_faults,
    scored_tokens_faults,
)
from megatron_prime.preflight.data import data_faults
from megatron_prime.preflight.engines import engine_faults
from megatron_prime.preflight.environments import environment_faults
from megatron_prime.preflight.models import folder_faults, model_faults
from megatron_prime.preflight.outputs import output_faults
from megatron_prime.preflight.prm_training import reference_faults
from megatron_prime.preflight.processes import process_faults
from megatron_prime.preflight.resume import resume_faults
from megatron_prime.preflight.rewards import reward_faults

COMMANDS = ("train", "evaluate", "sft", "train_prm", "evaluate_prm", "serve_prm", "rollout")
"""Commands that run a model; each needs other files."""


def command_of(config: PrimeConfig) -> str:
    """Return the command (one of COMMANDS) that a configuration is for, by the data that it names."""
    if config.data.train:
        return "train"
    if config.sft.data:
        return "sft"
    if config.prm_training.responses:
        return "train_prm"
    return "evaluate" if config.has_evaluation else "train"


def check_run(
    config: PrimeConfig, num_processes: int, command: str, replay: Path | None = None
) -> BatchArithmetic:
    """Check that `command` (one of COMMANDS) can start on `num_processes`, and return its batch arithmetic.

    With `replay`, the rollout log to train on, neither engine nor verifiers are needed.

    Raises:
        ConfigError: At least one check failed; the error lists every fault.
    """
    assert command in COMMANDS, f"unknown command {command!r}"
    arithmetic = BatchArithmetic.of(config, num_processes)
    faults = [
        *model_faults(config, command),
        *data_faults(config, command),
        *process_faults(config, arithmetic, command),
        *output_faults(config, command),
    ]
    if replay is None:
        faults += [
            *engine_faults(config, command),
            *environment_faults(config, command),
            *reward_faults(config, command),
        ]
    elif command == "train":
        from megatron_prime.preflight.replay import replay_faults  # pyarrow takes a while to import.

        faults += replay_faults(config, replay)
    if command == "train":
        faults += [*algorithm_faults(config), *resume_faults(config)]
    if command == "train_prm":
        faults += objective_faults(config)
    if command in ("sft", "train_prm"):
        faults += resume_faults(config, command)
    faults += [
        *scored_tokens_faults(config, command),
        *critic_command_faults(config, command),
        *reference_faults(config, command),
    ]
    if faults:
        raise ConfigError(f"{command} on {num_processes} processes", faults)
    return arithmetic


def check_convert(config: PrimeConfig, role: str, checkpoint: Path | None, output: Path) -> None:
    """Check that a role ("policy", "prm") of a training checkpoint can be written to `output`.

    Args:
        config: The configuration of the run that wrote the checkpoint.
        role: The model to convert.
        checkpoint: The checkpoint's folder; None for the newest complete one of run_dir.
        output: The folder to write.

    Raises:
        ConfigError: At least one check failed; the error lists every fault.
    """
    faults = list(_convert_faults(config, role, checkpoint, output))
    if faults:
        raise ConfigError("convert", faults)


def _convert_faults(config: PrimeConfig, role: str, checkpoint: Path | None, output: Path) -> Iterator[str]:
    from_prm = role == "prm" and config.prm.path is not None
    source = config.prm_path if role == "prm" else config.model.path
    yield from folder_faults("prm.path" if from_prm else "model.path", source)
    folder = config.run_dir / "checkpoints"
    if checkpoint is None and not any(folder.glob("step_*/run.json")):
        yield f"{folder} holds no complete checkpoint; train first, or name one with --checkpoint"
    if checkpoint is not None and not (checkpoint / "run.json").is_file():
        yield f"--checkpoint {checkpoint} is not a complete checkpoint: it has no run.json"
    if output.exists():
        yield f"--output {output} exists already: remove it, or choose another folder"
