"""Errors planted into correct solutions: one number of one step is changed.

Everything before the changed step is as in the original, and so is all text after it. Whether a PRM values the solution
less after the changed step than after the original one is therefore a question about that step alone, and it needs no
labels but those of correct solutions.
"""

import random
import re
from dataclasses import replace

from megatron_prime.evaluation.first_errors import CORRECT
from megatron_prime.evaluation.process_labels import TextSolution

_NUMBER = re.compile(r"[0-9]+")
_ENUMERATOR = re.compile(r"\W*(?:step|case|part)?\s*\d+\s*[.):]", re.IGNORECASE)
"""Matches a number at the begin of a step that only counts steps."""


def plant_error(solution: TextSolution) -> TextSolution | None:
    """Return the solution with another digit in one of its steps, the label; None if no step has a number.

    The digit is one of the last number of a step, which is mostly the step's result. Step, digit and new digit depend
    on the texts alone, so that all runs are asked about the same errors.
    """
    assert solution.label == CORRECT, "an error is planted into a correct solution"
    numbers = [_last_number(step) for step in solution.steps]
    places = [(place, number) for place, number in enumerate(numbers) if number is not None]
    if not places:
        return None
    rng = random.Random("\n".join((solution.problem, *solution.steps)))
    place, number = rng.choice(places)
    digits = number[0]
    at = rng.randrange(len(digits))
    first = "1" if at == 0 and len(digits) > 1 else "0"  # A number of several digits does not begin with 0.
    other = rng.choice([digit for digit in "0123456789" if digit >= first and digit != digits[at]])
    step, position = solution.steps[place], number.start() + at
    changed = step[:position] + other + step[position + 1 :]
    return replace(
        solution, steps=(*solution.steps[:place], changed, *solution.steps[place + 1 :]), label=place
    )


def _last_number(step: str) -> re.Match[str] | None:
    enumerator = _ENUMERATOR.match(step)
    numbers = list(_NUMBER.finditer(step, enumerator.end() if enumerator else 0))
    return numbers[-1] if numbers else None
