"""Episodes of environments for rollout engines: messages of worker processes become tokens, and turns become text.

engine --(tokens of a turn)--> episode --(text)--> pool --(messages)--> episode --(tokens of the reply)--> engine
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from transformers import PreTrainedTokenizerBase

from megatron_prime.config.run import PrimeConfig
from megatron_prime.data.conversations.replies import ReplyRenderer
from megatron_prime.data.rendering import PromptRenderer
from megatron_prime.environments.pool import EnvironmentPool, PooledEpisode
from megatron_prime.rollout.episode import EpisodeError, Reply
from megatron_prime.types import FinishReason, Prompt

MAX_PROMPTS = 1024
"""Prompts whose rendering is kept: those of the groups that are sampled at a time."""
Messages = list[dict[str, Any]]


class PooledEpisodes:
    """Opens the episodes of a run on one rank (an `Environments` of rollout/episode.py).

    Args:
        pool: Runs the environments; closed with this object.
        renderer: Writes messages as tokens.
        tokenizer: The policy's tokenizer.
        max_prompt_tokens: Longest prompt that an environment may begin with.
    """

    def __init__(
        self,
        pool: EnvironmentPool,
        renderer: ReplyRenderer,
        tokenizer: PreTrainedTokenizerBase,
        max_prompt_tokens: int,
    ) -> None:
        self.pool = pool
        self.renderer = renderer
        self.tokenizer = tokenizer
        self._max_prompt_tokens = max_prompt_tokens
        self._prompts: OrderedDict[Prompt, tuple[bytes, Prompt]] = OrderedDict()
        """Prompt of the data -> digest of the messages of `reset`, and the prompt that they make."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def counts(self) -> dict[str, float]:
        """Totals since the start; see `EnvironmentPool.counts`."""
        return self.pool.counts

    async def open(self, prompt: Prompt) -> "PooledRollout":
        """Begin an episode.

        Raises:
            EpisodeError: `reset` failed or returned other messages than for an earlier response to the row; or they
                make no prompt, or one that is too long.
        """
        episode = self.pool.episode()
        try:
            messages = await episode.reset(_row_of(prompt))
            return PooledRollout(self, episode, self._prompt_of(prompt, messages), messages)
        except BaseException:
            episode.close()
            raise

    def close(self) -> None:
        """End all processes; calls that wait fail. May be called twice."""
        self.pool.close()

    def _prompt_of(self, prompt: Prompt, messages: Messages) -> Prompt:
        """Return the prompt that the messages of `reset` make, which is that of all responses to a row."""
        content = json.dumps(messages, sort_keys=True)
        digest = hashlib.sha256(content.encode()).digest()
        if prompt in self._prompts:
            self._prompts.move_to_end(prompt)
            known, made = self._prompts[prompt]
            if known != digest:
                raise EpisodeError(
                    "reset returned other messages for this row than before: all responses to a row need the same "
                    "prompt, so it must be deterministic"
                )
            return made
        try:
            token_ids = self.renderer.prompt_ids(messages)
        except ValueError as error:
            raise EpisodeError(f"the messages of reset make no prompt: {error}") from error
        if len(token_ids) > self._max_prompt_tokens:
            raise EpisodeError(
                f"the messages of reset make a prompt of {len(token_ids)} tokens, more than "
                f"rollout.max_prompt_tokens = {self._max_prompt_tokens}"
            )
        made = replace(prompt, token_ids=token_ids, messages=json.dumps(messages, ensure_ascii=False))
        self._prompts[prompt] = digest, made
        if len(self._prompts) > MAX_PROMPTS:
            self._prompts.popitem(last=False)
        return made


class PooledRollout:
    """One response and its environment (an `Episode` of rollout/episode.py)."""

    def __init__(
        self, owner: PooledEpisodes, episode: PooledEpisode, prompt: Prompt, messages: Messages
    ) -> None:
        self.prompt = prompt
        self._owner = owner
        self._episode = episode
        self._messages = messages
        self._num_turns = 0

    async def step(self, token_ids: Sequence[int], finish_reason: FinishReason) -> Reply:
        """Return the reply to the tokens of a complete turn. Raises EpisodeError if there is none."""
        response = {
            "text": self._owner.tokenizer.decode(list(token_ids), skip_special_tokens=True),
            "token_ids": list(token_ids),
            "finish_reason": finish_reason.value,
            "turn": self._num_turns,
        }
        self._num_turns += 1
        step = await self._episode.step(response)
        if step["is_done"]:
            return Reply((), True, step["reward"], step["outcome"], step["reason"])
        try:
            reply = self._owner.renderer.reply_ids(self._messages, step["messages"])
        except ValueError as error:
            raise EpisodeError(f"the reply to turn {response['turn']} makes no tokens: {error}") from error
        return Reply(reply, reward=step["reward"])

    def close(self) -> None:
        """Forget the environment. May be called twice, and while `step` waits, which then fails."""
        self._episode.close()


def open_environments(
    config: PrimeConfig, tokenizer: PreTrainedTokenizerBase, stop_token_ids: Sequence[int]
) -> PooledEpisodes | None:
    """Start the processes of the environment that a configuration names; None for responses of one turn.

    Raises:
        ValueError: the environment does not start, with the reason.
    """
    if not config.environment.is_multi_turn:
        return None
    pool = EnvironmentPool(config.environment, config.reward.code)
    try:
        renderer = PromptRenderer(config.data, tokenizer, stop_token_ids)
        replies = ReplyRenderer(renderer, tokenizer, stop_token_ids, pool.tools)
        return PooledEpisodes(pool, replies, tokenizer, config.rollout.max_prompt_tokens)
    except BaseException:
        pool.close()
        raise


def tools_of(config: PrimeConfig) -> tuple[dict[str, Any], ...] | None:
    """Return the schemas of the environment's tools, asked from a process that then ends; None for `single_turn`.

    Raises:
        ValueError: as EnvironmentPool.
    """
    environment = config.environment
    if not environment.is_multi_turn:
        return None
    with EnvironmentPool(environment.model_copy(update={"num_workers": 1}), config.reward.code) as pool:
        return pool.tools


def _row_of(prompt: Prompt) -> Mapping[str, Any]:
    return {
        "messages": json.loads(prompt.messages or "[]"),
        "answer": prompt.answer,
        "source": prompt.source,
        "ability": prompt.ability,
        "metadata": json.loads(prompt.metadata or "{}"),
    }
