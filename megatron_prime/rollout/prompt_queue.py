"""The prompts of a run in order, with a look ahead of the position that checkpoints hold.

A step samples more prompts than it will use, because the filter drops some. Those that it does not use are the first
ones of the next step.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from megatron_prime.types import Prompt


class PromptStream(Protocol):
    """An endless, resumable stream of prompts, equal on every rank."""

    def next(self, num_prompts: int, /) -> Sequence[Prompt]:
        """Return the next `num_prompts` prompts, and advance the position."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the position, as plain JSON values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        ...


class PromptQueue:
    """A stream of prompts that can be read without taking them."""

    def __init__(self, stream: PromptStream) -> None:
        self._stream = stream
        self._position = stream.state_dict()
        self._ahead: deque[tuple[Prompt, dict[str, Any]]] = deque()
        """Prompts behind the position, each with the stream's position after it."""

    def ahead(self, first: int, count: int) -> list[Prompt]:
        """Return `count` prompts, from the one that is `first` places behind the next one on; none of them is taken.

        Raises:
            RuntimeError: the stream returned a wrong number of prompts.
        """
        while len(self._ahead) < first + count:
            prompts = self._stream.next(1)
            if len(prompts) != 1:
                raise RuntimeError(f"the prompt stream returned {len(prompts)} prompts instead of 1")
            self._ahead.append((prompts[0], self._stream.state_dict()))
        return [self._ahead[place][0] for place in range(first, first + count)]

    def take(self, count: int) -> None:
        """Advance the position by `count` prompts."""
        self.ahead(0, count)
        for _ in range(count):
            _, self._position = self._ahead.popleft()

    def state_dict(self) -> dict[str, Any]:
        """Return the position behind the prompts that were taken, as plain JSON values."""
        return self._position

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: the stream belongs to other data or settings.
        """
        self._stream.load_state_dict(state)
        self._position = state
        self._ahead.clear()
