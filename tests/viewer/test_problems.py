"""Problems are sorted by how they changed between wrong and right over the logged steps."""

import numpy as np
import pytest

from megatron_prime.viewer.logged_step import LoggedStep
from megatron_prime.viewer.problems import Problem, ProblemHistory, Sighting, by_change
from tests.support.viewed_runs import row, step_rows, write_step


@pytest.mark.parametrize(
    ("accuracies", "change"),
    [
        ([0.25, 0.75], "learned"),
        ([0.0, 0.5, 1.0], "learned"),
        ([0.75, 0.25], "forgotten"),
        ([1.0, 0.0, 1.0], "unstable"),
        ([0.0, 1.0, 0.5, 0.0], "unstable"),
        ([0.75, 0.5, 0.75], ""),
        ([0.25, 0.5], ""),
        ([0.5, 0.5], ""),
        ([0.0], ""),
        ([], ""),
    ],
)
def test_the_kind_of_change(accuracies, change):
    sightings = tuple(Sighting(step, 0, accuracy, 4) for step, accuracy in enumerate(accuracies))
    assert Problem("s", 1, "p", "a", sightings).change == change


def test_problems_are_followed_over_steps_by_source_and_index(tmp_path):
    generator = np.random.default_rng(0)
    history = ProblemHistory()
    for step, accuracies in ((1, [0.25, 0.75, 0.25]), (5, [0.75, 0.25, 0.0]), (9, [1.0, 0.75])):
        history.add(LoggedStep(write_step(tmp_path, step, step_rows(generator, accuracies))))
    found = by_change(history.problems())
    assert {change: [problem.prompt_index for problem in problems] for change, problems in found.items()} == {
        "learned": [0],
        "forgotten": [],
        "unstable": [1],
    }
    [learned] = found["learned"]
    assert learned.sightings == (Sighting(1, 0, 0.25, 4), Sighting(5, 0, 0.75, 4), Sighting(9, 0, 1.0, 4))
    assert (learned.source, learned.ground_truth) == ("gsm8k", "18")
    assert learned.prompt.startswith("Problem 0")
    assert history.num_problems == 3


def test_groups_without_a_verified_response_are_left_out(tmp_path):
    generator = np.random.default_rng(0)
    history = ProblemHistory()
    for step in (1, 2):
        rows = [
            row("a", generator, 0, 0, None),
            row("a", generator, 1, 0, None),
            row("a", generator, 1, 1, 1.0),
        ]
        history.add(LoggedStep(write_step(tmp_path, step, rows)))
    [problem] = history.problems()
    assert (problem.prompt_index, problem.sightings[0]) == (1, Sighting(1, 1, 1.0, 1))
