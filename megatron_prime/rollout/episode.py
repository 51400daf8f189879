"""The interface between an engine, which samples the turns of a response, and the environment that replies to them.

An engine samples a turn, gives it to the episode of the response, appends the tokens of the reply, and samples the next
turn, until the episode or a budget of `SamplingParams` ends the response (engines/conversation.py). The tokens of the
policy are never decoded and encoded again on the way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from megatron_prime.types import FinishReason, Prompt


class EpisodeError(Exception):
    """An environment failed, ran out of time, or was ended; the message says how. It costs the response alone."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The reply of an environment to one turn of the policy."""

    token_ids: tuple[int, ...] = ()
    """Tokens that follow the policy's: the messages of the environment as the chat template writes them, up to where
    the policy continues. Empty if the episode has ended."""
    is_done: bool = False
    """Whether the episode has ended."""
    reward: float = 0.0
    """Reward for the turn, in [-1, 1], besides the outcome."""
    outcome: float | None = None
    """Outcome of the response in [0, 1]; None leaves it to the verifier."""
    reason: str = ""
    """Reason for the outcome."""


class Episode(Protocol):
    """One response to one prompt, as its environment sees it. Used by one task at a time, on any event loop."""

    @property
    def prompt(self) -> Prompt:
        """The prompt, whose tokens are those of the environment's first messages."""
        ...

    async def step(self, token_ids: Sequence[int], finish_reason: FinishReason) -> Reply:
        """Return the reply to the tokens of a complete turn.

        Raises:
            EpisodeError: there is no reply.
        """
        ...

    def close(self) -> None:
        """Free what the environment holds. May be called twice, and while `step` waits, which then fails."""
        ...


class Environments(Protocol):
    """The environments of a run, on one rank."""

    async def open(self, prompt: Prompt) -> Episode:
        """Begin an episode.

        Raises:
            EpisodeError: the environment does not start.
        """
        ...
