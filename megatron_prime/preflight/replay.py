"""Check a rollout log that a run is to replay: every step is there, and belongs to the run's model and batch."""

from collections.abc import Iterator
from pathlib import Path

from megatron_prime.config.run import PrimeConfig
from megatron_prime.hf.config_json import ModelFolderError
from megatron_prime.hf.identity import model_identity
from megatron_prime.observability.rollout_log import RolloutFile, log_folder, logged_steps

MOST_FAULTS = 3
"""Faults of single files that are shown; a whole log usually has the same one."""


def replay_faults(config: PrimeConfig, source: Path) -> Iterator[str]:
    """Yield why a run cannot replay the rollout log of `source`, a run or the folder of its log."""
    where = f"--replay-rollouts {source}"
    steps = logged_steps(log_folder(source))
    if not steps:
        yield f"{where}: no rollout log is there: name a run_dir, or its folder rollouts"
        return
    needed = range(_num_done(config.run_dir) + 1, config.trainer.num_steps + 1)
    missing = [step for step in needed if step not in steps]
    if missing:
        yield (
            f"{where}: {len(missing)} of the steps {needed.start} to {needed.stop - 1} are not logged, first step "
            f"{missing[0]}: lower trainer.num_steps, or log every step (rollout_log.every_steps = 1, max_mib)"
        )
    faults = [fault for step in needed if step in steps for fault in _file_faults(config, steps[step])]
    yield from (f"{where}: {fault}" for fault in faults[:MOST_FAULTS])
    if len(faults) > MOST_FAULTS:
        yield f"{where}: {len(faults) - MOST_FAULTS} more files have faults"


def replay_doubts(config: PrimeConfig, source: Path) -> Iterator[str]:
    """Yield a warning if a log to replay was sampled from other weights than those that the run starts with.

    It may be meant, as to train the model of a later run; but then the updates are further off-policy.
    """
    first = next(iter(logged_steps(log_folder(source)).values()), None)
    if first is None:
        return
    with RolloutFile(first) as file:
        model = file.info.model
    weights = model_identity(config.model.path)["weights"]
    if model is not None and model.get("weights") != weights:
        yield (
            f"--replay-rollouts {source}: sampled from other weights than those of model.path = {config.model.path}: "
            "look at rollout/logprob_gap"
        )


def _num_done(run_dir: Path) -> int:
    """Return the number of steps of the newest checkpoint, from which a run resumes."""
    done = [path.parent.name for path in (run_dir / "checkpoints").glob("step_*/run.json")]
    return max((int(name.removeprefix("step_")) for name in done), default=0)


def _file_faults(config: PrimeConfig, path: Path) -> Iterator[str]:
    try:
        with RolloutFile(path) as file:
            info, num_rows = file.info, file.num_rows
        model = model_identity(config.model.path)
    except ModelFolderError:
        return  # preflight.models reports it.
    except ValueError as error:
        yield str(error)
        return
    other = [part for part in ("tokenizer", "config.json") if (info.model or model).get(part) != model[part]]
    if other:
        what = "tokenizer" if "tokenizer" in other else "architecture (config.json)"
        yield f"{path} was sampled with another {what} than that of model.path = {config.model.path}"
        return
    if info.top_p < 1:
        yield (
            f"{path} was sampled with rollout.top_p = {info.top_p:g}, but its log-probs are those of the whole "
            "distribution: sample with 1 what is to be trained on"
        )
    group_size, most = config.rollout.group_size, config.trainer.prompts_per_step
    if info.num_groups * group_size != num_rows:
        yield (
            f"{path} holds {num_rows} responses in {info.num_groups} groups, but rollout.group_size = {group_size}: "
            "set it as the log has it"
        )
    if info.num_groups < min(most, info.num_groups_sampled):
        yield (
            f"{path} holds {info.num_groups} of the {info.num_groups_sampled} groups that the step has sampled, fewer "
            f"than trainer.prompts_per_step = {most}: log all of them (rollout_log.groups_per_step = 'all'), or lower "
            "prompts_per_step"
        )
