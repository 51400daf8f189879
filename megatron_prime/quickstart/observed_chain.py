"""Chain arithmetic in turns: after each value an environment remarks on the step, and names the next operation.

The policy writes one digit a turn. The environment answers with one of eight letters and the next operation: a letter
of the first half if the digit was right, given the digit before it, and of the second half if it was wrong; the halves
are swapped with the probability `noise`. Nobody tells the policy what the letters mean, and only the last digit is
judged. The letters are text that the policy did not write and that follows its decisions: the evidence from which
implicit process rewards learn which step was wrong (docs/environments.md).

Everything that the environment writes is determined by its row and by the digits so far.
"""

import random
from collections.abc import Sequence

from megatron_prime.environments.protocol import Response, Row, Step
from megatron_prime.quickstart.arithmetic import evaluate
from megatron_prime.sample import ChatMessage

LETTERS = "abcdefgh"
OPERATIONS = "operations"
"""The column of a row with all its operations, such as "+3 x7 -1"."""


def remark(digits: Sequence[int], is_right: bool, noise: float, key: str) -> str:
    """Return the letter that follows the digits of a problem so far, the start among them.

    Args:
        digits: the start, and the digits that the policy wrote.
        is_right: whether the last digit is right, given the one before it.
        noise: probability of a letter of the wrong half.
        key: names the problem; with the digits it determines the letter.
    """
    rng = random.Random(f"{key} {digits}")
    is_first_half = is_right != (rng.random() < noise)
    half = len(LETTERS) // 2
    return rng.choice(LETTERS[:half] if is_first_half else LETTERS[half:])


def next_digit(digit: int, operation: str) -> int:
    """Apply an operation, such as "x7", modulo 10."""
    return evaluate(digit, operation[0], int(operation[1:]))


class ObservedChain:
    """The environment of one problem.

    Args:
        noise: probability that a remark says the wrong thing; 0.5 makes remarks meaningless.
    """

    def __init__(self, noise: float = 0.1) -> None:
        self._noise = noise
        self._operations: list[str] = []
        self._digits: list[int] = []
        self._answer = ""

    def reset(self, row: Row) -> Sequence[ChatMessage]:
        """Begin with the prompt of the row: a digit and the first operation."""
        self._operations = str(row.metadata[OPERATIONS]).split()
        self._digits = [int(str(row.messages[-1]["content"]).split()[0])]
        self._answer = row.answer
        return row.messages

    def step(self, response: Response) -> Step:
        """Remark on a digit and name the next operation; anything else ends the episode."""
        text = response.text.strip()
        if not (len(text) == 1 and text in "0123456789"):
            return Step.done(0.0, reason=f"{text!r} is no digit")
        done = len(self._digits)
        expected = next_digit(self._digits[-1], self._operations[done - 1])
        self._digits.append(int(text))
        if done == len(self._operations):
            return Step.done(float(text == self._answer))
        letter = remark(self._digits, int(text) == expected, self._noise, " ".join(self._operations))
        return Step.reply(f"{letter} {self._operations[done]}")
