"""A game in text: the policy guesses a whole number and is told whether it is too high or too low.

The number and the range follow from the row: `answer` is the number if it is a whole one within the range, and
otherwise a hash of answer and messages selects it. A policy of one turn cannot know it.
"""

import hashlib
import json
import re
from collections.abc import Sequence

from megatron_prime.environments.protocol import Response, Row, Step
from megatron_prime.sample import ChatMessage

_NUMBER = re.compile(r"(?<!\d)-?\d{1,18}(?!\d)")


class Environment:
    """One game.

    Args:
        lowest: Smallest number of the range.
        highest: Largest number of the range.
        max_guesses: Guesses that the player has; after the last wrong one, the outcome is 0.
        num_hints: Wrong guesses that are told whether they are too high or too low; default all.
    """

    def __init__(
        self, lowest: int = 1, highest: int = 100, max_guesses: int = 7, num_hints: int | None = None
    ) -> None:
        if lowest > highest or max_guesses < 1:
            raise ValueError(
                f"guess_number: lowest = {lowest} must not exceed highest = {highest}, and max_guesses = "
                f"{max_guesses} must be positive"
            )
        self._lowest, self._highest = lowest, highest
        self._max_guesses = max_guesses
        self._num_hints = max_guesses if num_hints is None else num_hints
        self._number = lowest

    def reset(self, row: Row) -> Sequence[ChatMessage]:
        """Choose the number, and state the game unless the row has a prompt of its own."""
        self._number = self._number_of(row)
        if row.messages:
            return row.messages
        rules = (
            f"Guess a whole number from {self._lowest} to {self._highest}. You have {self._max_guesses} guesses. "
            "Write one number in each answer."
        )
        return [{"role": "user", "content": rules}]

    def step(self, response: Response) -> Step:
        """Judge the last number of the response."""
        is_last = response.turn + 1 >= self._max_guesses
        numbers = _NUMBER.findall(response.text)
        guess = int(numbers[-1]) if numbers else None
        if guess == self._number:
            return Step.done(1.0, reason=f"it guessed {guess} in turn {response.turn + 1}")
        if is_last:
            return Step.done(0.0, reason=f"the number was {self._number}")
        if guess is None:
            return Step.reply("That is no number.")
        if response.turn >= self._num_hints:
            return Step.reply("Wrong.")
        return Step.reply("Too low." if guess < self._number else "Too high.")

    def _number_of(self, row: Row) -> int:
        answer = row.answer.strip()
        if re.fullmatch(r"-?\d{1,18}", answer) and self._lowest <= int(answer) <= self._highest:
            return int(answer)
        content = json.dumps([row.answer, [dict(message) for message in row.messages]], sort_keys=True)
        digest = int.from_bytes(hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest())
        return self._lowest + digest % (self._highest - self._lowest + 1)
