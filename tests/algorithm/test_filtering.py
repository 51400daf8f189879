import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_prime.algorithm.filtering import accuracy_band_keep, truncation_keep, verified_keep


def kept_counts(group_size, low=0.2, high=0.8, dtype=torch.float32):
    """How many correct answers a group of this size may have to be kept."""
    kept = []
    for num_correct in range(group_size + 1):
        outcomes_B = torch.tensor([1.0] * num_correct + [0.0] * (group_size - num_correct), dtype=dtype)
        if accuracy_band_keep(outcomes_B, torch.zeros(group_size).long(), low, high).all():
            kept.append(num_correct)
    return kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("group_size", "expected"), [(4, range(1, 4)), (5, range(1, 5)), (10, range(2, 9)), (16, range(4, 13))]
)
def test_both_ends_of_the_band_are_included(group_size, expected, dtype):
    assert kept_counts(group_size, dtype=dtype) == list(expected)


@pytest.mark.parametrize("group_size", [5, 10, 15, 20, 25, 35, 40, 50, 100])
def test_rounding_of_a_fifth_never_moves_the_band(group_size):
    fifth = group_size // 5
    assert kept_counts(group_size) == list(range(fifth, group_size - fifth + 1))


def test_groups_without_contrast_never_train():
    """They have zero outcome advantage but a process advantage: a batch must not be filled with them."""
    outcomes_B = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    ids_B = torch.tensor([3, 8, 3, 8, 5, 5])
    assert accuracy_band_keep(outcomes_B, ids_B, 0.2, 0.8).tolist() == [False] * 4 + [True] * 2


def test_soft_outcomes_use_their_mean():
    outcomes_B = torch.tensor([0.1, 0.3, 0.9, 0.9])
    ids_B = torch.tensor([0, 0, 1, 1])
    assert accuracy_band_keep(outcomes_B, ids_B, 0.2, 0.8).tolist() == [True, True, False, False]


def test_a_verifier_error_drops_its_whole_group_even_from_the_widest_band():
    """Errors scored 0.5 passed the band in the released code."""
    outcomes_B = torch.tensor([1.0, 0.0, math.nan, 0.0, 1.0])
    ids_B = torch.tensor([1, 2, 2, 1, 2])
    expected = [True, False, False, True, False]
    assert accuracy_band_keep(outcomes_B, ids_B, 0.0, 1.0).tolist() == expected
    assert verified_keep(outcomes_B, ids_B).tolist() == expected
    assert not verified_keep(torch.full((4,), math.nan), torch.zeros(4).long()).any()


@pytest.mark.parametrize(("max_fraction", "expected"), [(0.0, "000110"), (0.5, "110110"), (1.0, "111111")])
def test_truncated_groups_go_by_their_share(max_fraction, expected):
    truncated_B = torch.tensor([True, False, True, False, False, True])
    ids_B = torch.tensor([0, 0, 9, 4, 4, 9])
    kept = truncation_keep(truncated_B, ids_B, max_fraction)
    assert "".join(str(int(k)) for k in kept) == expected


def test_a_truncated_fifth_is_within_a_fifth():
    truncated_B = torch.arange(5) == 0
    assert truncation_keep(truncated_B, torch.zeros(5).long(), 0.2).all()


def test_bad_input_is_explained():
    outcomes_B, ids_B = torch.zeros(2), torch.zeros(2).long()
    cases = (
        (lambda: accuracy_band_keep(outcomes_B, ids_B, 0.8, 0.2), "empty; low must not exceed high"),
        (lambda: accuracy_band_keep(outcomes_B, ids_B, -0.1, 0.8), "low is"),
        (lambda: accuracy_band_keep(outcomes_B + 2, ids_B, 0.2, 0.8), r"\[0, 1\]"),
        (lambda: accuracy_band_keep(outcomes_B, ids_B[:1], 0.2, 0.8), "values_B has shape"),
        (lambda: verified_keep(outcomes_B - 1, ids_B), r"\[0, 1\]"),
        (lambda: truncation_keep(outcomes_B, ids_B, 0.5), "must be bool"),
        (lambda: truncation_keep(outcomes_B.bool(), ids_B, 1.5), "max_fraction is"),
        (lambda: truncation_keep(outcomes_B.bool()[:1], ids_B, 0.5), "truncated_B has shape"),
    )
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), num_groups=st.integers(1, 5), num_rows=st.integers(1, 20))
def test_order_of_rows_does_not_matter(seed, num_groups, num_rows):
    generator = torch.Generator().manual_seed(seed)
    ids_B = torch.randint(num_groups, (num_rows,), generator=generator)
    outcomes_B = torch.randint(2, (num_rows,), generator=generator).float()
    outcomes_B[torch.rand(num_rows, generator=generator) < 0.1] = math.nan
    order = torch.randperm(num_rows, generator=generator)
    filters = (
        lambda rows: accuracy_band_keep(outcomes_B[rows], ids_B[rows], 0.2, 0.8),
        lambda rows: verified_keep(outcomes_B[rows], ids_B[rows]),
        lambda rows: truncation_keep(outcomes_B[rows] == 1, ids_B[rows], 0.5),
    )
    everything = torch.arange(num_rows)
    for keep in filters:
        kept_B = keep(everything)
        assert torch.equal(keep(order), kept_B[order])
        for group in ids_B.unique():
            assert kept_B[ids_B == group].unique().numel() == 1
