import pytest

from tests.support.toy_runs import Toy


@pytest.fixture
def parts(toy: Toy) -> dict:
    """Return the results of three evaluations of one engine, at steps 0, 0 and 1."""
    return toy.facts["parts"]


def test_evaluations_are_equal_at_the_same_step_and_differ_at_another(parts):
    first, again, later = parts["responses"]
    assert first == again
    assert first != later


def test_max_prompts_limits_the_evaluation_to_the_first_prompts(parts):
    assert parts["num_prompts"] == 5


def test_benchmarks_have_their_own_prompts_samples_and_random_numbers(parts):
    num_prompts, samples_per_prompt, prompt = parts["benchmark"]
    assert (num_prompts, samples_per_prompt, prompt.ability) == (8, 4, "math")
    first, again, later = parts["benchmark responses"]
    assert first == again
    assert first != later
