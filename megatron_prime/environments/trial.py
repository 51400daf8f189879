"""Tries the environment of a run on rows of its data, by the code of the run, before the run starts."""

import asyncio
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from megatron_prime.config.run import PrimeConfig
from megatron_prime.data.tokenizer import encode
from megatron_prime.environments.episodes import PooledEpisodes, open_environments
from megatron_prime.rollout.episode import EpisodeError, Reply
from megatron_prime.types import FinishReason, Prompt

NUM_TRIED = 4
"""Rows that episodes are tried on."""
SAMPLE_TURN = "This is a turn of the trial."
SAMPLE_CALL = '<tool_call>\n{"name": "trial", "arguments": {}}\n</tool_call>'


def try_environment(
    config: PrimeConfig,
    tokenizer: PreTrainedTokenizerBase,
    stop_token_ids: Sequence[int],
    prompts: Sequence[Prompt],
) -> tuple[list[str], list[str]]:
    """Return why the environment cannot be used with these prompts of a run, and what is possible but hardly meant.

    Each of the first prompts gets two episodes, whose prompts must agree, and a turn that no policy wrote.
    """
    environment = config.environment.model_copy(update={"num_workers": 1})
    try:
        environments = open_environments(
            config.model_copy(update={"environment": environment}), tokenizer, stop_token_ids
        )
    except ValueError as error:
        return [str(error)], []
    if environments is None:
        return [], []
    with environments:
        text = SAMPLE_CALL if environments.pool.tools else SAMPLE_TURN
        faults = _tag_faults(tokenizer) if environments.pool.tools else []
        warnings: list[str] = []
        turn = [*encode(tokenizer, [text])[0], stop_token_ids[0]]
        for prompt in prompts[:NUM_TRIED]:
            if faults:
                break
            try:
                made, reply = asyncio.run(_play(environments, prompt, turn))
            except EpisodeError as error:
                faults.append(f"environment.name = {environment.name!r}, row {prompt.index}: {error}")
            else:
                faults += _budget_faults(config, reply)
                num_added = len(made.token_ids) - len(prompt.token_ids)
                warnings = warnings or _long_prompts(config, prompts, num_added)
        return faults, [*environments.renderer.noted, *warnings]


def _long_prompts(config: PrimeConfig, prompts: Sequence[Prompt], num_added: int) -> list[str]:
    """Return a warning about prompts that schemas and messages of the environment make too long."""
    longest = config.rollout.max_prompt_tokens
    count = sum(len(prompt.token_ids) + num_added > longest for prompt in prompts)
    if not count:
        return []
    return [
        f"the environment adds about {num_added} tokens to a prompt, such as the schemas of its tools: with them, "
        f"{count} of {len(prompts)} prompts exceed rollout.max_prompt_tokens = {longest}, and their responses fail"
    ]


async def _play(environments: PooledEpisodes, prompt: Prompt, turn: Sequence[int]) -> tuple[Prompt, Reply]:
    """Open two episodes of a row, and return their prompt and the reply to a first turn."""
    episodes = [await environments.open(prompt), await environments.open(prompt)]
    try:
        return episodes[0].prompt, await episodes[0].step(turn, FinishReason.STOP)
    finally:
        for episode in episodes:
            episode.close()


def _tag_faults(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    (token_ids,) = encode(tokenizer, [SAMPLE_CALL])
    if "<tool_call>" in str(tokenizer.decode(token_ids, skip_special_tokens=True)):
        return []
    return [
        "the tokenizer loses <tool_call>, as an unknown word or as a special token that is no part of a text: calls of "
        "tools could not be found"
    ]


def _budget_faults(config: PrimeConfig, reply: Reply) -> list[str]:
    longest, length = config.rollout.max_response_tokens, len(reply.token_ids)
    if reply.is_done or length + 2 <= longest:
        return []
    return [
        f"rollout.max_response_tokens = {longest} does not hold a turn, a reply and another turn: the reply to a turn "
        f"of the trial has {length} tokens"
    ]
