"""A planted error changes one digit of one step, the same one in every process."""

from pathlib import Path

import pytest

from megatron_prime.data.rows.row import DataRow
from megatron_prime.evaluation.planted_errors import plant_error
from megatron_prime.evaluation.process_labels import TextSolution

STEPS = (
    "There are 6 boxes of 8 pears.",
    "Step 2: multiply.",
    "6 times 8 = 48.",
    "No number.",
    "3) The answer is 105",
)
PLANTED = [
    ("There are 6 boxes of 9 pears.", *STEPS[1:]),
    (*STEPS[:4], "3) The answer is 108"),
    (*STEPS[:4], "3) The answer is 102"),
]
"""STEPS with the errors of problems 0, 1 and 2."""


def solution(*steps, problem="p"):
    return TextSolution(DataRow({}, Path("a.jsonl"), 1), problem, steps, -1)


def changes(before, after):
    """Return the characters that differ, as (position, old, new)."""
    assert len(before) == len(after)
    pairs = enumerate(zip(before, after, strict=True))
    return [(at, old, new) for at, (old, new) in pairs if old != new]


@pytest.mark.parametrize("number", range(20))
def test_one_digit_of_the_last_number_of_one_step_is_another(number):
    found = plant_error(solution(*STEPS, problem=f"problem {number}"))
    assert found is not None
    (step,) = [place for place, pair in enumerate(zip(STEPS, found.steps, strict=True)) if pair[0] != pair[1]]
    assert found.label == step
    ((at, old, new),) = changes(STEPS[step], found.steps[step])
    assert at in {0: [21], 2: [12, 13], 4: [17, 18, 19]}[step], (
        "the results, not the numbers that count steps"
    )
    assert old.isdigit() and new.isdigit()
    assert not (new == "0" and at in (12, 17)), "a number does not begin with 0"


def test_the_errors_of_many_solutions_are_in_all_steps_that_have_a_result():
    labels = {plant_error(solution(*STEPS, problem=str(number))).label for number in range(40)}
    assert labels == {0, 2, 4}


@pytest.mark.parametrize("steps", [("no number",), ("Step 1.", "2) then", "(3)"), ("",)])
def test_a_solution_without_a_result_has_no_error_planted(steps):
    assert plant_error(solution(*steps)) is None


def test_a_step_that_is_a_number_alone_is_a_result():
    found = plant_error(solution("7"))
    assert found.steps[0] in set("012345689")


def test_the_errors_are_the_same_in_every_process():
    """Hashes of texts differ between processes; these are the errors of every run."""
    assert [plant_error(solution(*STEPS, problem=str(number))).steps for number in range(3)] == PLANTED
