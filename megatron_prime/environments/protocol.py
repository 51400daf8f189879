"""The protocol of an environment. `environment.name = "my_module:MyClass"` names a class of a user's own.

    class Guess:
        def reset(self, row):                     # before the first turn
            self.number = int(row.answer)
            return row.messages                   # the prompt: as in the data, or messages of its own

        def step(self, response):                 # after each turn of the policy
            if response.text.strip() == str(self.number):
                return Step.done(outcome=1.0)
            return Step.reply("Wrong. Try again.")

An object serves one episode, in a process of its own kind: it may block, keep state and fail. Both methods may be
`async def`. They must be deterministic for the row and the responses so far: after a fault of the process, the episode
is repeated in another one.
"""

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from megatron_prime.sample import ChatMessage


@dataclass(frozen=True, slots=True)
class Row:
    """The row of the data set that an episode belongs to."""

    messages: Sequence[ChatMessage]
    """Messages of the prompt, with system prompt and instruction."""
    answer: str
    """Ground truth."""
    source: str = ""
    ability: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """The row's other columns."""


@dataclass(frozen=True, slots=True)
class Response:
    """One turn of the policy."""

    text: str
    """Text without special tokens."""
    token_ids: Sequence[int]
    finish_reason: str
    """"stop" if the policy ended its turn, "length" if it ran out of tokens."""
    turn: int
    """Number of the turn, from 0."""


@dataclass(frozen=True, slots=True)
class Step:
    """The answer of an environment to a turn; made by `reply` or `done`."""

    messages: tuple[ChatMessage, ...] = ()
    """Messages that follow the policy's; empty at the end."""
    is_done: bool = False
    reward: float = 0.0
    """Reward for the turn, in [-1, 1]."""
    outcome: float | None = None
    """Outcome of the whole response in [0, 1]; None leaves it to `reward.verifier`."""
    reason: str = ""
    """Reason for the outcome, for logs."""

    @staticmethod
    def reply(messages: str | ChatMessage | Sequence[ChatMessage], reward: float = 0.0) -> "Step":
        """Continue with messages; a text is a message of the user."""
        if isinstance(messages, str):
            messages = {"role": "user", "content": messages}
        return Step((messages,) if isinstance(messages, Mapping) else tuple(messages), reward=reward)

    @staticmethod
    def done(outcome: float | None = None, reward: float = 0.0, reason: str = "") -> "Step":
        """End the episode."""
        return Step((), True, reward, outcome, reason)


class Environment(Protocol):
    """The environment of one episode; constructed with `environment.settings` as keyword arguments.

    A class may have an attribute `tools`, a list of function schemas (JSON, as of OpenAI): the chat template writes
    them into every prompt.
    """

    def reset(self, row: Row) -> Sequence[ChatMessage] | Awaitable[Sequence[ChatMessage]]:
        """Return the messages of the prompt; equal for all responses to a row."""
        ...

    def step(self, response: Response) -> Step | Awaitable[Step]:
        """Return the reply to a turn, or the end. An exception ends the episode without an outcome."""
        ...
