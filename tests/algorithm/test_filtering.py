import math
import random

import pytest
import torch

from megatron_prime.algorithm.filtering import has_few_truncated, is_in_accuracy_band, is_verified
from megatron_prime.algorithm.groups import group_mean


def kept_counts(group_size, low=0.2, high=0.8):
    """How many correct answers a group of this size may have to be kept."""
    return [
        num_correct
        for num_correct in range(group_size + 1)
        if is_in_accuracy_band([1.0] * num_correct + [0.0] * (group_size - num_correct), low, high)
    ]


@pytest.mark.parametrize(
    ("group_size", "expected"), [(4, range(1, 4)), (5, range(1, 5)), (10, range(2, 9)), (16, range(4, 13))]
)
def test_both_ends_of_the_band_are_included(group_size, expected):
    assert kept_counts(group_size) == list(expected)


@pytest.mark.parametrize("group_size", [5, 10, 15, 20, 25, 35, 40, 50, 100])
def test_rounding_of_a_fifth_never_moves_the_band(group_size):
    fifth = group_size // 5
    assert kept_counts(group_size) == list(range(fifth, group_size - fifth + 1))


def test_groups_without_contrast_never_train():
    """They have zero outcome advantage but a process advantage: a batch must not be filled with them."""
    groups = [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]
    assert [is_in_accuracy_band(group, 0.2, 0.8) for group in groups] == [False, False, True]


def test_soft_outcomes_use_their_mean():
    assert is_in_accuracy_band([0.1, 0.3], 0.2, 0.8)
    assert not is_in_accuracy_band([0.9, 0.9], 0.2, 0.8)


def test_a_verifier_error_drops_its_whole_group_even_from_the_widest_band():
    """Errors scored 0.5 passed the band in the released code."""
    for outcomes, is_kept in (([1.0, 0.0], True), ([0.0, math.nan, 1.0], False), ([math.nan] * 4, False)):
        assert is_in_accuracy_band(outcomes, 0.0, 1.0) is is_kept
        assert is_verified(outcomes) is is_kept


@pytest.mark.parametrize(("max_fraction", "expected"), [(0.0, "001"), (0.5, "101"), (1.0, "111")])
def test_truncated_groups_go_by_their_share(max_fraction, expected):
    groups = [True, False], [True, True], [False, False]
    assert "".join(str(int(has_few_truncated(group, max_fraction))) for group in groups) == expected


def test_a_truncated_fifth_is_within_a_fifth():
    assert has_few_truncated([True, False, False, False, False], 0.2)


def test_bad_input_is_explained():
    outcomes = [0.0, 0.0]
    cases = (
        (lambda: is_in_accuracy_band(outcomes, 0.8, 0.2), "empty; low must not exceed high"),
        (lambda: is_in_accuracy_band(outcomes, -0.1, 0.8), "low is"),
        (lambda: is_in_accuracy_band([2.0, 0.0], 0.2, 0.8), r"\[0, 1\]"),
        (lambda: is_verified([0.0, -1.0]), r"\[0, 1\]"),
        (lambda: is_verified([math.inf]), r"\[0, 1\]"),
        (lambda: has_few_truncated([False], 1.5), "max_fraction is"),
    )
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_the_means_are_those_of_the_batch():
    """A batch has its outcomes, and all that is computed of groups, in float32 tensors."""
    rng = random.Random(0)
    for _ in range(300):
        outcomes = [rng.choice([0.0, 1.0, 1 / 3, rng.random()]) for _ in range(rng.randint(1, 20))]
        mean = float(group_mean(torch.tensor(outcomes), torch.zeros(len(outcomes), dtype=torch.int64))[0])
        assert is_in_accuracy_band(outcomes, mean, mean)
        is_kept = torch.tensor(0.2) <= mean <= torch.tensor(0.5)
        assert is_in_accuracy_band(outcomes, 0.2, 0.5) is bool(is_kept)
