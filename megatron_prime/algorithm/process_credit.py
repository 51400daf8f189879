"""Credit forms: the rewards that each position of a response is credited with, before baselines and returns.

With r_t the reward of a token (`implicit_reward.token_rewards_BT`), units and positions as at `prm.granularity`:

    own          the reward of the unit itself (the paper)
    hindsight    the rewards after it, up to and with the next position
    observation  the rewards of the unit's tokens that an environment wrote; at `token`, those tokens are the positions
    td           the change of the PRM's value over the unit: v_t - v_{t-1} of each token, v_t the probability that the
                 response ends up right after its first t tokens
    min          w_t * r_t, with w = softmax(-r / temperature) over the positions of the response

`hindsight` and `observation` are ours, after what docs/theory.md says of evidence. `td` is the temporal difference of a
value function without discount; v_t is the sigmoid of what `prm.loss` says of a prefix (`prefix_logits_BL`): for the
summed scores sigma(b + beta * sum_{s <= t} q_s), with b the logit of `groups.prior_logits_B`. It takes them as
probabilities, which the pairwise objectives do not train. `min` is PURE (arXiv 2504.15275):
for a low temperature the undiscounted return of a position is the lowest reward of the response up to where that
stands, and 0 behind it. PURE's temperature is 0.1 for rewards between -1 and 1. Implicit rewards have no such scale, so
here it is a tenth of the standard deviation of the batch's rewards.

Shapes: B responses, T response tokens (right padded), L = T + 1 lengths of a prefix.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_prime.algorithm.checks import check_shapes
from megatron_prime.algorithm.implicit_reward import (
    following_columns_BT,
    reward_positions,
    running_sums_BT,
    token_rewards_BT,
    unit_sums_BT,
)
from megatron_prime.algorithm.tensor_ops import zero_padding
from megatron_prime.config.tables.advantage import ProcessCredit
from megatron_prime.config.tables.prm import PRMConfig

MIN_TEMPERATURE = 0.1
"""Temperature of credit `min`, in standard deviations of the rewards of the batch."""


@dataclass(frozen=True)
class CreditedRewards:
    """Rewards as `advantage.advantage_parts` takes them."""

    rewards_BT: Tensor
    """Zero off the positions."""
    positions_BT: Tensor
    """bool; the tokens that carry rewards."""


@torch.no_grad()
def credited_rewards(
    prm_logprobs_BT: Tensor,
    ref_logprobs_BT: Tensor,
    response_mask_BT: Tensor,
    config: PRMConfig,
    credit: ProcessCredit,
    unit_ids_BT: Tensor | None = None,
    policy_mask_BT: Tensor | None = None,
    prefix_logits_BL: Tensor | None = None,
) -> CreditedRewards:
    """Return what each position is credited with, of the global batch, detached.

    Credit `own` gives `implicit_reward.process_rewards_BT`. `hindsight` gives each position what follows it: at `token`
    that is r_{t+1}, and 0 at the end; at `turn` it is the reply to the turn and the policy's next turn. The opinion of
    the PRM about a decision is left out, and what the response shows of it afterwards counts.

    Args:
        prm_logprobs_BT: nats.
        ref_logprobs_BT: nats.
        response_mask_BT: bool or 0/1, right padded.
        config: the [prm] section; reads beta, granularity, reward_scale and scored_tokens.
        credit: `advantage.process_credit`.
        unit_ids_BT: int, nondecreasing; needed for granularity `step` and `turn`.
        policy_mask_BT: bool or 0/1; None for all tokens of the response.
        prefix_logits_BL: of `prm_loss.PRMObjective`; needed for `td`.

    Raises:
        ValueError: shapes differ, a wrong mask, bad ids, or `td` without values.
    """
    positions_BT = reward_positions(
        response_mask_BT,
        config.granularity,
        unit_ids_BT,
        policy_mask_BT,
        scored_tokens=config.scored_tokens,
    )
    policy_BT = (response_mask_BT if policy_mask_BT is None else policy_mask_BT).bool()
    tokens_BT = token_rewards_BT(prm_logprobs_BT, ref_logprobs_BT, response_mask_BT, config, policy_mask_BT)
    if credit == "hindsight":
        if config.granularity == "token":
            # The policy's tokens are credited with what follows them also where they have no rewards themselves.
            positions_BT = positions_BT | policy_BT
        following = _of_the_next_position if config.granularity == "token" else _sums_after
        return CreditedRewards(following(tokens_BT, positions_BT), positions_BT)
    if credit == "td":
        tokens_BT = _value_differences(prefix_logits_BL, tokens_BT, response_mask_BT)
    if credit == "observation":
        tokens_BT = zero_padding(tokens_BT, ~policy_BT)
        if config.granularity == "token":
            positions_BT = positions_BT & ~policy_BT
    rewards_BT = unit_sums_BT(tokens_BT, positions_BT, policy_BT, config.granularity)
    if credit == "min":
        rewards_BT = _weighted_to_the_minimum(rewards_BT, positions_BT)
    return CreditedRewards(rewards_BT, positions_BT)


def _value_differences(prefix_logits_BL: Tensor | None, like_BT: Tensor, response_mask_BT: Tensor) -> Tensor:
    """Return v_t - v_{t-1} of each token."""
    if prefix_logits_BL is None:
        raise ValueError(
            "credit 'td' needs prefix_logits_BL, the values that the PRM's objective gives to prefixes"
        )
    check_shapes(torch.Size([*like_BT.shape[:1], like_BT.shape[1] + 1]), prefix_logits_BL=prefix_logits_BL)
    # In float64, because values near 0 or 1 differ by less than float32 resolves.
    differences_BT = prefix_logits_BL.double().sigmoid().diff(dim=1)
    return zero_padding(differences_BT, response_mask_BT).to(like_BT.dtype)


def _of_the_next_position(rewards_BT: Tensor, positions_BT: Tensor) -> Tensor:
    """Return, on each position, the value of the one after it, and 0 on the last."""
    with_end_BT = torch.nn.functional.pad(rewards_BT, (0, 1))
    return zero_padding(with_end_BT.gather(1, following_columns_BT(positions_BT)), positions_BT)


def _sums_after(rewards_BT: Tensor, positions_BT: Tensor) -> Tensor:
    """Return, on each position, the sum of the rewards after it up to and with the next position, or to the end."""
    running_BT = running_sums_BT(rewards_BT)
    ends_BT = (following_columns_BT(positions_BT) + 1).clamp(max=rewards_BT.shape[1])
    sums_BT = running_BT.gather(1, ends_BT) - running_BT[:, 1:]
    return zero_padding(sums_BT, positions_BT).to(rewards_BT.dtype)


def _weighted_to_the_minimum(rewards_BT: Tensor, positions_BT: Tensor) -> Tensor:
    """Return softmax(-r / temperature) * r over the positions of each response."""
    values_BT = rewards_BT.double()
    spread = (
        values_BT[positions_BT].std(unbiased=False) if bool(positions_BT.any()) else values_BT.new_zeros(())
    )
    # Rewards that are all equal have equal weights at any temperature.
    temperature = torch.where(spread > 0, MIN_TEMPERATURE * spread, 1.0)
    logits_BT = torch.where(positions_BT, -values_BT / temperature, -torch.inf)
    return zero_padding(logits_BT.softmax(dim=1) * values_BT, positions_BT).to(rewards_BT.dtype)
