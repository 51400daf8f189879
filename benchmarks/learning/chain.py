"""Chain arithmetic in turns, with or without marks: the environment of most tasks of this benchmark.

The policy writes one number a turn, and the environment names the next operation. With marks, a letter stands before
the operation, which judges the number with the probability 1 - noise of being right: a letter of the first half of
LETTERS says right, one of the second half wrong. Only the last number is verified.

Every token ends a turn of the policy (generation_config.json names all as end-of-sequence tokens), so that a response
is number, mark, operation, number, mark, operation, ..., and the mark follows the number that it judges at once. A word
that is no number counts as a wrong number, and leaves the value as it was. Operations are written as one character
each, because a reply may not contain longer words that end a turn.

Processes that run environments import this module, so it imports nothing but the standard library and the protocol.
"""

import math
import random
from collections.abc import Iterator, Sequence

from megatron_prime.environments.protocol import Response, Row, Step
from megatron_prime.sample import ChatMessage

LETTERS = "abcdefgh"
OPERATORS = "+-x"
SYMBOLS = 0x2200
"""The first character that stands for an operation: Unicode's block of mathematical operators."""
MAX_MODULUS = 64
OPERATIONS = "operations"
"""The column of a row with all its operations, such as "+3 x7 -1"."""


def operands(operator: str, modulus: int) -> list[int]:
    """Return the operands of an operator; those of x make it a bijection of the numbers."""
    if operator != "x":
        return list(range(modulus))
    return [operand for operand in range(3, modulus) if math.gcd(operand, modulus) == 1]


def apply(value: int, operation: str, modulus: int) -> int:
    """Apply an operation, such as "x7"."""
    operator, operand = operation[0], int(operation[1:])
    if operator == "x":
        return value * operand % modulus
    return (value + operand if operator == "+" else value - operand) % modulus


def operations_of(modulus: int) -> list[str]:
    """Return all operations, such as "x7"."""
    return [f"{operator}{operand}" for operator in OPERATORS for operand in operands(operator, modulus)]


def symbol(operation: str) -> str:
    """Return the character that stands for an operation."""
    return chr(SYMBOLS + OPERATORS.index(operation[0]) * MAX_MODULUS + int(operation[1:]))


def operation_of(character: str) -> str:
    """Return the operation that a character stands for."""
    operator, operand = divmod(ord(character) - SYMBOLS, MAX_MODULUS)
    return f"{OPERATORS[operator]}{operand}"


def mark(written: Sequence[int], judged: Sequence[bool], noise: float, every: int, key: str) -> str:
    """Return the letter that follows a number.

    Args:
        written: the start, and the numbers so far; with `key` they determine the letter.
        judged: whether each of the numbers is right, given the one before it.
        noise: probability of a letter of the wrong half.
        every: 1 judges each number; k judges the last k together at every kth, and says nothing at the others.
        key: names the problem.
    """
    rng = random.Random(f"{key} {list(written)}")
    is_first_half = rng.random() >= noise
    if len(judged) % every:
        is_first_half = rng.random() < 0.5
    elif not all(judged[-every:]):
        is_first_half = not is_first_half
    half = len(LETTERS) // 2
    return rng.choice(LETTERS[:half] if is_first_half else LETTERS[half:])


def judged_numbers(words: Sequence[str], places: Sequence[int], modulus: int) -> Iterator[bool]:
    """Yield whether each number of a response is right, given the one before it.

    Args:
        words: words of the prompt and the response.
        places: indices of the policy's words; the word before each is the operation.
        modulus: number of numbers.
    """
    value = int(words[0])
    for place in places:
        expected = str(apply(value, operation_of(words[place - 1]), modulus))
        value = int(words[place]) if words[place].isdecimal() else value
        yield words[place] == expected


class Chain:
    """The environment of one problem.

    Args:
        modulus: number of numbers.
        marks: 0 writes no marks; otherwise see `every` of `mark`.
        noise: probability of a misleading mark; 0.5 makes marks meaningless.
        rewards: gives each right number the reward 1, for the upper bound that knows which steps are right.
    """

    def __init__(
        self, modulus: int = 10, marks: int = 1, noise: float = 0.1, *, rewards: bool = False
    ) -> None:
        self._modulus = modulus
        self._marks = marks
        self._noise = noise
        self._rewards = rewards
        self._operations: list[str] = []
        self._written: list[int] = []
        self._judged: list[bool] = []
        self._answer = ""

    def reset(self, row: Row) -> Sequence[ChatMessage]:
        """Begin with the prompt of the row: a number and the first operation."""
        self._operations = str(row.metadata[OPERATIONS]).split()
        self._written = [int(str(row.messages[-1]["content"]).split()[0])]
        self._judged = []
        self._answer = row.answer
        return row.messages

    def step(self, response: Response) -> Step:
        """Mark a number and name the next operation."""
        text = response.text.strip()
        expected = apply(self._written[-1], self._operations[len(self._judged)], self._modulus)
        self._judged.append(text == str(expected))
        self._written.append(int(text) if text.isdecimal() else self._written[-1])
        reward = float(self._rewards and self._judged[-1])
        if len(self._judged) == len(self._operations):
            return Step.done(float(text == self._answer), reward=reward)
        return Step.reply(
            reply(self._operations, self._written, self._judged, self._marks, self._noise), reward
        )


def reply(
    operations: Sequence[str], written: Sequence[int], judged: Sequence[bool], marks: int, noise: float
) -> str:
    """Return what follows the last number: its mark, if there are marks, and the next operation."""
    operation = symbol(operations[len(judged)])
    if not marks:
        return operation
    return f"{mark(written, judged, noise, marks, ' '.join(operations))} {operation}"
