"""Step scores against plain loops."""

import random

import pytest
import torch

from megatron_prime.evaluation.step_scores import response_score, step_scores


@pytest.mark.parametrize("seed", range(5))
def test_step_scores_are_running_sums_at_the_ends_of_steps(seed):
    draw = random.Random(seed)
    ratios = [draw.gauss(0, 1) for _ in range(40)]
    steps, step = [], 0
    for _ in ratios:
        steps.append(step)
        step += draw.random() < 0.3
    num_steps = step + 2  # The last steps have no tokens.
    wanted = []
    for number in range(num_steps):
        total = 0.0
        for ratio, owner in zip(ratios, steps, strict=True):
            if owner <= number:
                total += ratio
        wanted.append(0.05 * total)
    values = 0.05 * torch.tensor([0.0, *ratios], dtype=torch.float64).cumsum(dim=0)
    found = step_scores(values, steps, num_steps)
    assert found == pytest.approx(wanted, abs=1e-12)
    assert response_score(found, "min") == min(found)
    assert response_score(found, "last") == found[-1]
    assert response_score(found, "sum") == pytest.approx(sum(found))


def test_a_first_step_without_tokens_has_the_value_of_the_empty_prefix():
    assert step_scores(torch.tensor([0.25, 1.0, 1.5]), [1, 1], 3) == [0.25, 1.5, 1.5]


@pytest.mark.parametrize(
    ("steps", "reason"), [([0], "steps of 1 tokens"), ([1, 0], "nondecreasing"), ([0, 2], r"0 \.\. 1")]
)
def test_invalid_steps_are_refused(steps, reason):
    with pytest.raises(ValueError, match=reason):
        step_scores(torch.tensor([0.0, 1.0, 2.0]), steps, 2)
