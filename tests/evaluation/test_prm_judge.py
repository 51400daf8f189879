"""Metrics that follow from step scores, computed by hand; tests/cli/prm/test_evaluation.py tests the scores."""

import math

import pytest
import torch

from megatron_prime.config.tables.prm import PRMConfig
from megatron_prime.evaluation.prm_judge import (
    JudgedGroup,
    JudgedText,
    StepScorer,
    group_pair_accuracy,
    processbench_metrics,
    reranking_metrics,
)
from megatron_prime.models.forward import Scores

GROUPS = [
    # The aggregations min, sum and last choose three different responses.
    JudgedGroup([[0.0, 1.0], [-2.0, 9.0], [-5.0, 3.0]], [1.0, 0.0, math.nan], ["7", "8", "8"]),
    JudgedGroup([[2.0], [1.0], [-1.0]], [0.0, 1.0, 1.0], ["1", "2", None]),
]


def test_reranking_metrics_match_values_computed_by_hand():
    found = reranking_metrics(GROUPS)
    assert found["avg@3"] == [pytest.approx(1 / 3), pytest.approx(2 / 3)]
    assert found["pass@3"] == [1.0, 1.0]
    assert found["best_min@3"] == [1.0, 0.0]
    assert found["best_sum@3"] == [0.0, 0.0]
    assert found["best_last@3"] == [0.0, 0.0]
    # In the first problem "8" has two votes, and sigmoid(9) + sigmoid(3) > sigmoid(1). In the second there is a tie of
    # the counts, and the weights are sigmoid(2) > sigmoid(1).
    assert found["majority@3"] == [0.0, 0.0]
    assert found["weighted_vote@3"] == [0.0, 0.0]
    assert found["best_min@1"] == found["pass@1"] == [1.0, 0.0]
    assert found["best_last@2"] == [0.0, 0.0]
    assert {name.rpartition("@")[2] for name in found} == {"1", "2", "3"}


def test_a_weighted_vote_may_overrule_the_majority():
    group = JudgedGroup([[4.0], [-4.0], [-4.0]], [1.0, 0.0, 0.0], ["1", "2", "2"])
    found = reranking_metrics([group])
    assert (found["majority@3"], found["weighted_vote@3"]) == ([0.0], [1.0])


def test_uneven_groups_are_refused():
    with pytest.raises(ValueError, match=r"there are \[1, 3\]"):
        reranking_metrics([GROUPS[0], JudgedGroup([[1.0]], [1.0], ["1"])])


def test_pair_accuracy_within_problems():
    # First problem: (1, 9) is out of order and the NaN is in no pair. Second: (1, 2) and (-1, 2) are out of order.
    assert group_pair_accuracy(GROUPS) == (0.0, 3)
    better = JudgedGroup([[2.0], [1.0]], [1.0, 0.0], [None, None])
    assert group_pair_accuracy([*GROUPS, better]) == (1 / 4, 4)
    assert math.isnan(group_pair_accuracy([JudgedGroup([[1.0]], [1.0], [None])])[0])


def test_processbench_metrics_match_values_computed_by_hand():
    scores = {"gsm8k": [[1.0, -3.0], [2.0, 1.0]], "math": [[-2.0, -2.0], [0.5, 0.4], [1.0, -0.9]]}
    labels = {"gsm8k": [1, -1], "math": [0, -1, 0]}
    found = processbench_metrics(scores, labels, "gsm8k", None)
    assert found["threshold"] == pytest.approx(1 / (1 + math.exp(1.0)))
    assert (found["gsm8k/f1"], found["math/erroneous"], found["math/correct"]) == (1.0, 0.5, 1.0)
    assert found["f1"] == pytest.approx((1.0 + 2 / 3) / 2)
    assert (found["math/num_solutions"], found["math/num_correct"]) == (3, 1)
    given = processbench_metrics(scores, labels, "gsm8k", 0.9)
    assert given["threshold"] == pytest.approx(0.9)
    assert given["gsm8k/f1"] == 0.0


class Constant:
    """A scorer that finds every token equally likely."""

    def __init__(self, logprob):
        self._logprob = logprob

    def score(self, sequences):
        longest = max(len(response) for _, response in sequences)
        return Scores(torch.full((len(sequences), longest), self._logprob), torch.zeros(1))


def test_tokens_outside_of_the_scored_spans_count_nothing():
    texts = [
        JudgedText("a", [1], [2] * 5, [0, 0, 1, 1, 1], 2, spans)
        for spans in (None, [(0, 1), (3, 5)], [(0, 2)])
    ]
    scorer = StepScorer(Constant(-1.0), Constant(-2.0), PRMConfig(beta=0.5), 10)
    assert scorer(texts) == [[1.0, 2.5], [0.5, 1.5], [1.0, 1.0]]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (JudgedText("a, row 1", [1] * 6, [2] * 5, [0] * 5, 1), "a, row 1: 11 tokens, more than the 10 that"),
        (JudgedText("a, row 2", [1], [], [], 0), "a, row 2: the response has no tokens"),
    ],
)
def test_a_text_that_cannot_be_scored_is_reported_before_scoring_starts(text, reason):
    scorer = StepScorer(None, None, PRMConfig(), max_tokens=10)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=reason):
        scorer([text])
