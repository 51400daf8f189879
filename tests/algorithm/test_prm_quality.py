"""Signs of a PRM that misleads, against plain float64 loops over responses."""

import math
import random

import pytest
import torch

from megatron_prime.algorithm.prm_quality import (
    best_is_wrong,
    length_correlation,
    lowest_on_last,
    share_of_magnitude,
)
from tests.algorithm.oracle import Batch, mean

SEEDS = range(6)


class Case(Batch):
    """A batch with scores of its responses, tokens that carry rewards, and tokens that count as formatting."""

    def __init__(self, seed, **options):
        super().__init__(seed, sizes=(4, 1, 5, 3), **options)
        rng = random.Random(seed + 100)
        # A few values, so that there are ties.
        self.rewards = [[float(rng.randint(-3, 3)) for _ in row] for row in self.rewards]
        self.scores = [rng.choice([-1.0, -0.25, 0.5, 2.0]) for _ in self.ids]
        self.carries = [[rng.random() < 0.7 for _ in row] for row in self.rewards]
        self.is_format = [[rng.random() < 0.4 for _ in row] for row in self.rewards]

    def bools_BT(self, rows):
        return self.padded(rows, padding=0.0).bool()

    @property
    def scores_B(self):
        return torch.tensor(self.scores)

    def measured(self, order=None):
        """Return the result of every function, on the rows in an order."""
        order = torch.arange(len(self.ids)) if order is None else order
        rewards_BT, mask_BT = self.rewards_BT[order], self.mask_BT[order]
        scores_B, labels_B = self.scores_B[order], self.outcome_rewards_B[order]
        return {
            "lowest": lowest_on_last(rewards_BT, self.bools_BT(self.carries)[order]),
            "length": (length_correlation(scores_B, mask_BT.sum(dim=1), labels_B),),
            "best": best_is_wrong(scores_B, labels_B, self.group_ids_B[order]),
            "share": share_of_magnitude(rewards_BT, self.bools_BT(self.is_format)[order], mask_BT),
        }


def expected_lowest(case):
    shares, chances = [], []
    for row, carries in zip(case.rewards, case.carries, strict=True):
        values = [value for value, carried in zip(row, carries, strict=True) if carried]
        if len(values) >= 2:
            lowest = min(values)
            shares.append((values[-1] == lowest) / values.count(lowest))
            chances.append(1 / len(values))
    return mean(shares), mean(chances)


def expected_length(case):
    by_outcome = {}
    for i, outcome in enumerate(case.outcomes):
        by_outcome.setdefault(outcome, []).append(i)
    left, right = [], []
    for rows in by_outcome.values():
        scores, lengths = [case.scores[i] for i in rows], [case.lengths[i] for i in rows]
        left += [score - mean(scores) for score in scores]
        right += [length - mean(lengths) for length in lengths]
    product = sum(a * b for a, b in zip(left, right, strict=True))
    return (product / math.sqrt(sum(a * a for a in left) * sum(b * b for b in right)),)


def expected_best(case):
    wrongs, chances = [], []
    for group in set(case.ids):
        rows = [i for i, other in enumerate(case.ids) if other == group]
        top = max(case.outcomes[i] for i in rows)
        wrong = [i for i in rows if case.outcomes[i] < top]
        if wrong:
            highest = max(case.scores[i] for i in rows)
            best = [i for i in rows if case.scores[i] == highest]
            wrongs.append(sum(i in wrong for i in best) / len(best))
            chances.append(len(wrong) / len(rows))
    return (mean(wrongs), mean(chances)) if wrongs else (math.nan, math.nan)


def expected_share(case):
    chosen = total = num_chosen = 0.0
    for row, is_format in zip(case.rewards, case.is_format, strict=True):
        for value, is_chosen in zip(row, is_format, strict=True):
            total += abs(value)
            chosen += abs(value) * is_chosen
            num_chosen += is_chosen
    return chosen / total, num_chosen / sum(case.lengths)


ORACLES = {
    "lowest": expected_lowest,
    "length": expected_length,
    "best": expected_best,
    "share": expected_share,
}


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_results_match_the_loops(seed, soft):
    case = Case(seed, soft=soft)
    for name, values in case.measured().items():
        expected = ORACLES[name](case)
        assert [float(value) for value in values] == pytest.approx(expected, abs=1e-12, nan_ok=True), name


@pytest.mark.parametrize("seed", SEEDS)
def test_neither_the_order_of_responses_nor_padding_matters(seed):
    case, wider = Case(seed), Case(seed, extra_padding=3)
    expected = case.measured()
    order = torch.randperm(len(case.ids), generator=torch.Generator().manual_seed(seed))
    for other in (case.measured(order), wider.measured()):
        for name, values in other.items():
            assert [float(value) for value in values] == pytest.approx(
                [float(value) for value in expected[name]], abs=1e-12, nan_ok=True
            ), name


def test_a_prm_that_equals_its_reference_is_at_chance():
    case = Case(0)
    zeros_BT = torch.zeros_like(case.rewards_BT)
    lowest, chance = lowest_on_last(zeros_BT, case.bools_BT(case.carries))
    assert float(lowest) == pytest.approx(float(chance))
    wrong, chance = best_is_wrong(torch.zeros(len(case.ids)), case.outcome_rewards_B, case.group_ids_B)
    assert float(wrong) == pytest.approx(float(chance))
    share, of_tokens = share_of_magnitude(zeros_BT, case.bools_BT(case.is_format), case.mask_BT)
    assert math.isnan(float(share))
    assert 0 < float(of_tokens) < 1
    lengths_B = case.mask_BT.sum(dim=1)
    assert math.isnan(
        float(length_correlation(torch.zeros(len(case.ids)), lengths_B, case.outcome_rewards_B))
    )


@pytest.mark.parametrize("per_token", [-0.1, 0.003])
def test_a_reward_for_every_token_is_a_bias_of_length_and_knowing_the_outcome_is_none(per_token):
    lengths_B = torch.tensor([5.0, 9.0, 2.0, 30.0, 35.0, 32.0])
    labels_B = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    biased = length_correlation(4 * labels_B.double() + per_token * lengths_B.double(), lengths_B, labels_B)
    assert float(biased) == pytest.approx(math.copysign(1, per_token))
    assert math.isnan(float(length_correlation(4 * labels_B, lengths_B, labels_B))), "nothing else varies"
    assert math.isnan(float(length_correlation(0.1 * labels_B, torch.full((6,), 7), labels_B)))


def test_a_batch_without_anything_to_count_gives_nan():
    """One token per response, no group with different outcomes, no reward."""
    ones_BT, mask_BT = torch.ones(3, 1), torch.ones(3, 1, dtype=torch.bool)
    assert all(math.isnan(float(value)) for value in lowest_on_last(ones_BT, mask_BT))
    scores_B, ids_B = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 1, 2])
    assert all(math.isnan(float(value)) for value in best_is_wrong(scores_B, torch.ones(3), ids_B))


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="rewards_BT"):
        lowest_on_last(torch.ones(2, 3), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="labels_B"):
        best_is_wrong(torch.ones(2), torch.ones(3), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="lengths_B"):
        length_correlation(torch.ones(2), torch.ones(3), torch.ones(2))
