"""Argument checks shared by the algorithm; each error says what is wrong and how to fix it.

Shapes: B responses, T response tokens (right padded).
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    allowed = tuple(choices)
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(allowed)}")


def check_shapes(shape: torch.Size, **tensors: Tensor | None) -> None:
    """Raise ValueError unless each tensor given has exactly `shape`; broadcasting would hide mistakes."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}")


def check_rows(num_rows: int, **tensors: Tensor | None) -> None:
    """Raise ValueError unless each tensor given has shape [num_rows]."""
    check_shapes(torch.Size([num_rows]), **tensors)


def check_response_mask(response_mask_BT: Tensor) -> Tensor:
    """Return the mask as bool after checking that every response starts in column 0 and has no hole.

    Args:
        response_mask_BT: bool, or numbers where non-zero means "a token of the response".

    Raises:
        ValueError: the mask is not two-dimensional, it is empty, or padding comes before a response token.
    """
    if response_mask_BT.dim() != 2:
        raise ValueError(f"response_mask_BT has shape {tuple(response_mask_BT.shape)}, expected [B, T]")
    if response_mask_BT.numel() == 0:
        raise ValueError("response_mask_BT is empty: no response is left; was everything filtered out?")
    mask_BT = response_mask_BT.bool()
    if bool((mask_BT[:, 1:] & ~mask_BT[:, :-1]).any()):
        raise ValueError(
            "response_mask_BT has padding before a response token; responses must start in column 0 "
            "and be padded on the right"
        )
    return mask_BT


def check_policy_mask(policy_mask_BT: Tensor | None, response_mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return both masks as bool, checked: that of the responses, and that of the tokens which the policy wrote.

    Args:
        policy_mask_BT: bool or 0/1; its holes are the replies of an environment. None: the policy wrote all tokens.
        response_mask_BT: see `check_response_mask`.

    Raises:
        ValueError: the response mask is wrong, shapes differ, or the policy's tokens are not part of a response that
            begins with one of them.
    """
    if policy_mask_BT is None:
        mask_BT = check_response_mask(response_mask_BT)
        return mask_BT, mask_BT
    check_shapes(response_mask_BT.shape, policy_mask_BT=policy_mask_BT)
    if response_mask_BT.dim() != 2 or response_mask_BT.numel() == 0:
        check_response_mask(response_mask_BT)
    mask_BT, policy_BT = response_mask_BT.bool(), policy_mask_BT.bool()
    is_wrong_BT = policy_BT & ~mask_BT
    is_wrong_BT[:, :1] |= mask_BT[:, :1] & ~policy_BT[:, :1]
    is_wrong_BT[:, 1:] |= mask_BT[:, 1:] & ~mask_BT[:, :-1]
    # One look for all reasons: each waits for the GPU.
    if bool(is_wrong_BT.any()):
        check_response_mask(response_mask_BT)
        raise ValueError(
            "policy_mask_BT marks padding, or leaves out the first token of a response; the policy writes first, and "
            "its tokens are some of those in response_mask_BT"
        )
    return mask_BT, policy_BT


def check_outcomes(outcome_rewards_B: Tensor) -> None:
    """Raise ValueError unless every outcome lies in [0, 1], so that none is NaN, a verifier error."""
    # The reason is looked for only where there is one: each look waits for the GPU.
    if bool(((outcome_rewards_B >= 0) & (outcome_rewards_B <= 1)).all()):
        return
    num_nan = int(outcome_rewards_B.isnan().sum())
    if num_nan:
        raise ValueError(
            f"{num_nan} outcome rewards are NaN (verifier errors); "
            "drop their groups with filtering.is_verified first"
        )
    raise ValueError(
        "outcome rewards must lie in [0, 1]: 0 or 1 for math, the fraction of tests passed for code"
    )


def check_unit_interval(**values: float) -> None:
    """Raise ValueError unless each number lies in [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; it must lie in [0, 1]")
