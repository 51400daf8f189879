"""Check the number of processes against the layout and the minibatches."""

from collections.abc import Iterator

from megatron_prime.config.arithmetic import BatchArithmetic
from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.stages import RESUMABLE


def process_faults(config: PrimeConfig, arithmetic: BatchArithmetic, command: str) -> Iterator[str]:
    """Yield each reason why a command cannot run on `arithmetic.num_processes`."""
    parallel = config.parallel
    if not arithmetic.data:
        yield (
            f"{arithmetic.num_processes} processes are not a multiple of "
            f"parallel.tensor * pipeline * context = {parallel.tensor} * {parallel.pipeline} * "
            f"{parallel.context} = {parallel.model_size}"
        )
    elif arithmetic.num_processes % parallel.min_processes:
        yield (
            f"{arithmetic.num_processes} processes are not a multiple of parallel.pipeline * expert * expert_tensor = "
            f"{parallel.pipeline} * {parallel.expert} * {parallel.expert_tensor}"
        )
    if command == "train":
        for role in arithmetic.roles:
            if role.responses_per_minibatch < arithmetic.data:
                yield (
                    f"{role.name}.num_minibatches = {role.num_minibatches} leaves "
                    f"{role.responses_per_minibatch} responses a minibatch for {arithmetic.data} "
                    "data-parallel ranks: lower it, or raise the batch"
                )
    absent = sorted({rank for rank in config.profile.ranks if rank >= arithmetic.num_processes})
    if command in RESUMABLE and config.profile.steps and absent:
        yield (
            f"profile.ranks names {', '.join(map(str, absent))}, but the ranks of {arithmetic.num_processes} "
            f"processes are 0 to {arithmetic.num_processes - 1}: name some of these"
        )
    if command == "sft" and config.sft.batch_size < arithmetic.data:
        yield f"sft.batch_size = {config.sft.batch_size} is less than {arithmetic.data} data-parallel ranks"
    if command == "train_prm" and config.prm_training.prompts_per_step < arithmetic.data:
        yield (
            f"prm_training.prompts_per_step = {config.prm_training.prompts_per_step} is less than {arithmetic.data} "
            "data-parallel ranks"
        )
