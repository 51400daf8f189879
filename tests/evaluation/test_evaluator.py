import pytest

from tests.support.toy_runs import Toy


@pytest.fixture
def parts(toy: Toy) -> dict:
    """Three evaluations of one engine: of steps 0, 0 and 1."""
    return toy.facts["parts"]


def test_evaluations_of_one_step_are_equal_and_of_two_steps_are_not(parts):
    first, again, later = parts["responses"]
    assert first == again
    assert first != later


def test_evaluation_takes_the_first_prompts_only(parts):
    assert parts["num_prompts"] == 5


def test_benchmarks_have_their_own_prompts_samples_and_random_numbers(parts):
    num_prompts, samples_per_prompt, prompt = parts["benchmark"]
    assert (num_prompts, samples_per_prompt, prompt.ability) == (8, 4, "math")
    first, again, later = parts["benchmark responses"]
    assert first == again
    assert first != later
