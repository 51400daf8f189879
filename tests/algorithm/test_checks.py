import math

import pytest
import torch

from megatron_prime.algorithm.checks import (
    check_choice,
    check_outcomes,
    check_policy_mask,
    check_response_mask,
    check_rows,
    check_shapes,
    check_unit_interval,
)


def test_choice_names_the_allowed_values():
    check_choice("mode", "a", ("a", "b"))
    with pytest.raises(ValueError, match="mode is 'c'; choose one of a, b"):
        check_choice("mode", "c", ("a", "b"))


def test_shapes_must_match_exactly_and_none_is_skipped():
    check_shapes(torch.Size([2, 3]), x=torch.zeros(2, 3), y=None)
    with pytest.raises(ValueError, match=r"x has shape \(2, 1\), expected \(2, 3\)"):
        check_shapes(torch.Size([2, 3]), x=torch.zeros(2, 1))
    with pytest.raises(ValueError, match="rewards"):
        check_rows(3, rewards=torch.zeros(3, 1))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_mask_of_any_dtype_becomes_bool(dtype):
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 1]])
    result = check_response_mask(mask.to(dtype))
    assert result.dtype == torch.bool
    assert torch.equal(result, mask.bool())


@pytest.mark.parametrize("row", [[0, 1, 1], [1, 0, 1]])
def test_left_padding_and_holes_are_refused(row):
    with pytest.raises(ValueError, match="padded on the right"):
        check_response_mask(torch.tensor([[1, 1, 1], row]))


def test_empty_and_flat_masks_are_refused():
    with pytest.raises(ValueError, match="filtered out"):
        check_response_mask(torch.zeros(0, 4))
    with pytest.raises(ValueError, match=r"expected \[B, T\]"):
        check_response_mask(torch.ones(4))


def test_a_policy_mask_may_have_holes_but_starts_each_response():
    mask_BT = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]])
    policy_BT = torch.tensor([[1, 0, 1], [1, 0, 0], [0, 0, 0]])
    both = check_policy_mask(policy_BT, mask_BT.float())
    assert all(
        torch.equal(found, given.bool()) for found, given in zip(both, (mask_BT, policy_BT), strict=True)
    )
    alone = check_policy_mask(None, mask_BT)
    assert torch.equal(alone[0], mask_BT.bool()) and torch.equal(*alone)
    cases = (
        (torch.tensor([[0, 1, 1], [1, 1, 0], [0, 0, 0]]), mask_BT, "leaves out the first token"),
        (torch.tensor([[1, 1, 1], [1, 1, 1], [0, 0, 0]]), mask_BT, "marks padding"),
        (policy_BT[:, :2], mask_BT, "policy_mask_BT has shape"),
        (policy_BT, policy_BT, "padded on the right"),
        (torch.ones(4), torch.ones(4), r"expected \[B, T\]"),
        (torch.zeros(0, 4), torch.zeros(0, 4), "filtered out"),
    )
    for policy, response, message in cases:
        with pytest.raises(ValueError, match=message):
            check_policy_mask(policy, response)


def test_outcomes_outside_the_unit_interval_or_nan():
    check_outcomes(torch.tensor([0.0, 0.3, 1.0]))
    with pytest.raises(ValueError, match="verifier errors"):
        check_outcomes(torch.tensor([0.0, math.nan]))
    for bad in (-0.1, 1.1, math.inf):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            check_outcomes(torch.tensor([0.5, bad]))


def test_unit_interval():
    check_unit_interval(gamma=0.0, other=1.0)
    for bad in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="gamma"):
            check_unit_interval(gamma=bad)
