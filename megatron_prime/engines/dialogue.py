"""A response and the environment that replies to it. When the environment fails, the response is begun again.

An engine calls `begin`, samples a turn, calls `add_turn` and `reply`, and so on until the dialogue is over. Dialogues
share nothing, so that each has its own pace. Without environments, `add_turn` ends the response.
"""

import time
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from megatron_prime.engines.conversation import Conversation, SampledTurn
from megatron_prime.engines.requests import ModelLimits, StreamKey, check_prompt
from megatron_prime.rollout.episode import Environments, Episode, EpisodeError
from megatron_prime.types import FinishReason, Prompt, Rollout, SamplingParams

MAX_EPISODES = 4
"""Attempts at one response, each with an environment that then failed, before it is given up."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class DialogueSettings:
    """Settings of all dialogues of a call."""

    params: SamplingParams
    limits: ModelLimits
    environments: Environments | None = None


class Dialogue:
    """One response of a call. Its coroutines may be cancelled; then it must be closed."""

    def __init__(self, prompt: Prompt, sample_index: int, key: StreamKey, settings: DialogueSettings) -> None:
        self.conversation = Conversation(prompt, settings.params)
        """The tokens so far, of the current attempt."""
        self.key = key
        """The random stream of the current attempt."""
        self._prompt = prompt
        self._sample_index = sample_index
        self._settings = settings
        self._episode: Episode | None = None
        self._num_failed = 0
        self._environment_s = 0.0

    @property
    def is_over(self) -> bool:
        """Whether the response has ended."""
        return self.conversation.finish_reason is not None

    @property
    def has_begun(self) -> bool:
        """Whether `begin` has nothing left to do."""
        return self._episode is not None or self._settings.environments is None

    async def begin(self) -> None:
        """Open the episode. The dialogue is over afterwards if too many have failed."""
        if self._settings.environments is None:
            return
        while self._episode is None and not self.is_over:
            try:
                self._episode = await self._timed(self._settings.environments.open(self._prompt))
                self._begin_with(self._episode.prompt)
            except EpisodeError as error:
                self._fail(error)

    def add_turn(self, turn: SampledTurn) -> None:
        """Append a turn, to which `reply` then gets the environment's reply."""
        self.conversation.add_turn(turn)
        if self._episode is None or turn.finish_reason is FinishReason.ABORT:
            self.conversation.end()

    async def reply(self) -> None:
        """Give the last turn to the environment, and append its reply or end the response, or begin it again."""
        turn = self.conversation.last_turn
        if self._episode is None or turn is None or self.is_over:
            self.close()
            return
        try:
            step = self._episode.step(turn.token_ids, turn.finish_reason)
            self.conversation.add_reply(await self._timed(step))
        except EpisodeError as error:
            self._fail(error)
            await self.begin()
        if self.is_over:
            self.close()

    def close(self) -> None:
        """Free the environment. May be called twice."""
        if self._episode is not None:
            self._episode.close()
            self._episode = None

    def rollout(self, policy_version: int) -> Rollout:
        """Return the response, which is over; `policy_version` is that of one without a turn."""
        rollout = self.conversation.rollout(self._sample_index, policy_version)
        return replace(
            rollout, num_failed_episodes=self._num_failed, environment_s=round(self._environment_s, 6)
        )

    def _begin_with(self, prompt: Prompt) -> None:
        settings = self._settings
        try:
            check_prompt(prompt, settings.params, settings.limits)
        except ValueError as error:
            # Another prompt of the run may be shorter, so that this response alone is lost.
            raise EpisodeError(f"the environment's {error}") from error
        self.conversation = Conversation(prompt, settings.params)

    def _fail(self, error: EpisodeError) -> None:
        self.close()
        self._num_failed += 1
        if self._num_failed == MAX_EPISODES:
            # With the tokens of the last attempt, for whoever looks for the reason.
            self.conversation.fail(str(error))
            return
        self.key = self.key.next_attempt()
        self.conversation = Conversation(self._prompt, self._settings.params)

    async def _timed(self, work: Awaitable[Answer]) -> Answer:
        started = time.perf_counter()
        try:
            return await work
        finally:
            self._environment_s += time.perf_counter() - started


def close_all(dialogues: Iterable[Dialogue]) -> None:
    """Free the environments of all dialogues."""
    for dialogue in dialogues:
        dialogue.close()
