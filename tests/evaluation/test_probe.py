"""Metrics of a probe set, against loops over pairs, and the texts that are scored for them."""

import random

import pytest
import torch

from megatron_prime.evaluation.probe import PRMProbe, RememberedScorer, probe_metrics
from megatron_prime.evaluation.probe_set import ProbeSet
from megatron_prime.evaluation.process_labels import LabelledSolution
from megatron_prime.models.forward import Scores


def pair_share(right, wrong):
    """Return the share of pairs in which the right one is higher, by a loop."""
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in right for b in wrong]
    return sum(wins) / len(wins)


@pytest.mark.parametrize("seed", range(5))
def test_metrics_match_loops_over_pairs(seed):
    rng = random.Random(seed)
    values = [[rng.choice([-1.0, -0.5, 0.0, 0.5, 1.0]) for _ in range(rng.randint(1, 5))] for _ in range(9)]
    labels = [-1, *(rng.choice([-1, rng.randrange(len(row))]) for row in values[1:-1]), 0]
    planted = [(row, [rng.choice([-1.0, 0.0, 0.5]) for _ in row], rng.randrange(len(row))) for row in values]
    right, wrong, right_rewards, wrong_rewards, at_error = [], [], [], [], []
    for row, label in zip(values, labels, strict=True):
        rewards = [value - (row[step - 1] if step else 0.0) for step, value in enumerate(row)]
        for step, value in enumerate(row):
            if label == -1 or step < label:
                right.append(value)
                right_rewards.append(rewards[step])
            elif step == label:
                wrong.append(value)
                wrong_rewards.append(rewards[step])
        if label != -1:
            lowest = [step for step, reward in enumerate(rewards) if reward == min(rewards)]
            at_error.append(lowest.count(label) / len(lowest))
    expected = {
        "prefix_auroc": pair_share(right, wrong),
        "step_auroc": pair_share(right_rewards, wrong_rewards),
        "solution_auroc": pair_share(
            *[
                [row[-1] for row, label in zip(values, labels, strict=True) if (label == -1) == is_right]
                for is_right in (True, False)
            ]
        ),
        "lowest_at_error": sum(at_error) / len(at_error),
        "planted_accuracy": sum(pair_share([old[step]], [new[step]]) for old, new, step in planted) / 9,
    }
    assert probe_metrics(values, labels, planted) == pytest.approx(expected)
    order = rng.sample(range(9), 9)
    shuffled = probe_metrics([values[i] for i in order], [labels[i] for i in order], planted[::-1])
    assert shuffled == pytest.approx(expected)


def test_a_perfect_prm_and_one_that_equals_its_reference():
    labels = [-1, 1, -1]
    perfect = probe_metrics([[1.0, 2.0], [1.0, -3.0], [1.0]], labels, [([1.0, 2.0], [1.0, -1.0], 1)])
    assert set(perfect.values()) == {1.0}
    assert len(perfect) == 5
    equal = probe_metrics([[0.0, 0.0], [0.0, 0.0], [0.0]], labels, [([0.0, 0.0], [0.0, 0.0], 1)])
    assert set(equal.values()) == {0.5}


def test_quantities_without_data_are_left_out():
    assert probe_metrics([[1.0]], [-1], []) == {}
    assert set(probe_metrics([[1.0]], [-1], [([1.0], [0.0], 0)])) == {"planted_accuracy"}
    assert set(probe_metrics([[1.0, 0.0]], [1], [])) == {"prefix_auroc", "step_auroc", "lowest_at_error"}


def labelled(response, steps, label):
    return LabelledSolution("a", (1, 2), tuple(response), tuple(steps), steps[-1] + 1, label)


def test_the_probe_scores_solutions_and_planted_errors_and_pairs_them():
    original, wrong = labelled([3, 4], [0, 1], -1), labelled([3, 5, 4], [0, 1, 1], 1)
    changed = labelled([3, 6], [0, 1], 1)
    scored = []

    def scorer(texts):
        scored.extend(texts)
        return {
            ((3, 4), (3, 5, 4), (3, 6)): [[1.0, 2.0], [1.0, 0.5], [1.0, 1.5]],
        }[tuple(text.response_ids for text in texts)]

    found = PRMProbe(ProbeSet([original, wrong], [(0, changed)]), scorer)()
    assert found == probe_metrics([[1.0, 2.0], [1.0, 0.5]], [-1, 1], [([1.0, 2.0], [1.0, 1.5], 1)])
    assert [(text.token_steps, text.num_steps) for text in scored] == [
        ((0, 1), 2),
        ((0, 1, 1), 2),
        ((0, 1), 2),
    ]


def test_a_model_that_never_changes_scores_the_same_texts_once():
    class Counting:
        calls = 0

        def score(self, sequences):
            self.calls += 1
            return Scores(torch.full((len(sequences), 2), -float(self.calls)), torch.zeros(len(sequences), 2))

    scorer = Counting()
    remembered = RememberedScorer(scorer)
    first = remembered.score([([1], [2, 3])]).logprobs_BT
    assert torch.equal(remembered.score([((1,), (2, 3))]).logprobs_BT, first)
    assert scorer.calls == 1
    assert remembered.score([([1], [2, 4])]).logprobs_BT[0, 0] == -2.0
