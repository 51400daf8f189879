"""Chain arithmetic modulo 10: problems, and a demonstrator who makes systematic mistakes.

Processes that run environments import this module, so it imports nothing but the standard library.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

NUM_STEPS = 8
OPERANDS = {"+": tuple(range(10)), "-": tuple(range(10)), "x": (3, 7, 9)}
"""The operands of each operator. Those of x make it a bijection of the digits."""


@dataclass(frozen=True)
class Problem:
    """A start digit and the operations on it."""

    start: int
    operations: tuple[tuple[str, int], ...]

    @property
    def text(self) -> str:
        """The prompt: tokens separated by one space, ending with `=`."""
        parts = [str(self.start)]
        for operator, operand in self.operations:
            parts += [operator, str(operand)]
        return " ".join([*parts, "="])

    def trace(self) -> list[int]:
        """Return the correct running value after each operation."""
        values, value = [], self.start
        for operator, operand in self.operations:
            value = evaluate(value, operator, operand)
            values.append(value)
        return values


class Demonstrator:
    """Solves problems with an operation table that is partly wrong.

    A fraction `wrong_fraction` of each operator's entries (value, operand) has one fixed wrong result, which is used
    with probability `wrong_probability`. The fraction is taken per operator rather than of the whole table, so that
    the demonstrator's accuracy is nearly the same for every seed.
    """

    def __init__(self, seed: int, wrong_fraction: float = 0.3, wrong_probability: float = 0.5) -> None:
        self._rng = random.Random(f"demonstrator {seed}")
        self._wrong_probability = wrong_probability
        self.habits: dict[tuple[int, str, int], int] = {}
        """The wrong results, by (value, operator, operand)."""
        for operator, operands in OPERANDS.items():
            entries = [(value, operator, operand) for value in range(10) for operand in operands]
            for entry in self._rng.sample(entries, round(wrong_fraction * len(entries))):
                right = evaluate(*entry)
                self.habits[entry] = self._rng.choice([digit for digit in range(10) if digit != right])

    def trace(self, problem: Problem) -> list[int]:
        """Return the running values; an error propagates to the following operations."""
        values, value = [], problem.start
        for operator, operand in problem.operations:
            habit = self.habits.get((value, operator, operand))
            if habit is not None and self._rng.random() < self._wrong_probability:
                value = habit
            else:
                value = evaluate(value, operator, operand)
            values.append(value)
        return values


def evaluate(value: int, operator: str, operand: int) -> int:
    """Apply one operation modulo 10."""
    if operator == "+":
        return (value + operand) % 10
    if operator == "-":
        return (value - operand) % 10
    assert operator == "x", f"unknown operator {operator!r}"
    return value * operand % 10


def sample_problem(rng: random.Random, num_steps: int = NUM_STEPS) -> Problem:
    """Return a problem with that many operations; all operators are equally likely."""
    operations = []
    for _ in range(num_steps):
        operator = rng.choice(tuple(OPERANDS))
        operations.append((operator, rng.choice(OPERANDS[operator])))
    return Problem(rng.randrange(10), tuple(operations))


def distinct_problems(rng: random.Random, num_steps: int = NUM_STEPS) -> Iterator[Problem]:
    """Yield problems endlessly, without repetition."""
    seen: set[Problem] = set()
    while True:
        problem = sample_problem(rng, num_steps)
        if problem not in seen:
            seen.add(problem)
            yield problem
