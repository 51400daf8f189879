"""The PPO-clip policy loss (Eq. 6) with its options, as sums with weights fixed beforehand.

No mean is taken here. `aggregation_weights_BT` turns the mask of the whole minibatch into weights that sum to
1; a microbatch passes its rows of them, and losses, gradients and metrics add up to the same numbers for any
split.

Shapes: B responses, T response tokens (right padded).
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from megatron_prime.algorithm.checks import check_choice, check_shapes
from megatron_prime.algorithm.tensor_ops import as_float, zero_padding

Aggregation = Literal["token", "sequence"]
KLEstimator = Literal["k1", "k2", "k3"]

# exp(20) is 5e8: beyond any meaningful ratio, far from overflow in float32. Past the clamp the gradient is 0.
MAX_LOG_RATIO = 20.0


@dataclass(frozen=True)
class PolicyLossSettings:
    """Options of the policy loss; the defaults are the paper's 7B run.

    Attributes:
        clip_low: the ratio is clipped below at 1 - clip_low; in (0, 1).
        clip_high: the ratio is clipped above at 1 + clip_high; positive (larger than clip_low is DAPO's
            clip-higher).
        dual_clip: c > 1 bounds the loss of a token with a negative advantage by -c * advantage; None is off.
        entropy_coef: weight of the entropy bonus.
        kl_coef: weight of the KL to the reference.
        kl_estimator: of KL(policy || reference), d = logprobs - ref_logprobs: k1 = d (its gradient is 0 on
            average, so it measures but does not restrain), k2 = d^2 / 2, k3 = exp(-d) - 1 + d (never
            negative).
        tis_cap: cap on the truncated importance weight min(exp(old - rollout), cap), detached; None is off.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    entropy_coef: float = 0.0
    kl_coef: float = 0.0
    kl_estimator: KLEstimator = "k3"
    tis_cap: float | None = None

    def __post_init__(self) -> None:
        check_choice("kl_estimator", self.kl_estimator, get_args(KLEstimator))
        if not 0 < self.clip_low < 1:
            raise ValueError(f"clip_low is {self.clip_low}; it must lie between 0 and 1")
        if not self.clip_high > 0:
            raise ValueError(f"clip_high is {self.clip_high}; it must be positive")
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise ValueError(f"dual_clip is {self.dual_clip}; it must be greater than 1, or None for off")
        if self.tis_cap is not None and not self.tis_cap > 0:
            raise ValueError(f"tis_cap is {self.tis_cap}; it must be positive, or None for off")
        if self.entropy_coef < 0 or self.kl_coef < 0:
            raise ValueError(
                f"entropy_coef {self.entropy_coef} and kl_coef {self.kl_coef} must not be negative"
            )


def aggregation_weights_BT(response_mask_BT: Tensor, mode: Aggregation) -> Tensor:  # noqa: N802
    """Return float32 weights of the tokens of one global minibatch; they sum to 1 and are 0 in the padding.

    token: 1 / number of response tokens. sequence: 1 / (number of non-empty responses * length of the
    response).

    Raises:
        ValueError: an unknown mode, or a minibatch without a response token.
    """
    check_choice("mode", mode, get_args(Aggregation))
    mask_BT = response_mask_BT.bool()
    length_B1 = mask_BT.sum(dim=1, keepdim=True)
    if not bool(length_B1.any()):
        raise ValueError("the minibatch has no response token, so its loss has no weights; drop it")
    if mode == "token":
        return mask_BT.float() / length_B1.sum()
    num_responses = (length_B1 > 0).sum()
    return mask_BT.float() / (length_B1.clamp(min=1) * num_responses)


def clip_policy_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    weights_BT: Tensor,
    settings: PolicyLossSettings,
    entropy_BT: Tensor | None = None,
    ref_logprobs_BT: Tensor | None = None,
    rollout_logprobs_BT: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return (loss, metrics): the weighted sum over tokens of Eq. 6 and its options, and detached sums.

    loss = sum w * (tis * max(-A * ratio, -A * clip(ratio)) - entropy_coef * entropy + kl_coef * kl), with
    ratio = exp(logprobs - old_logprobs). Log-ratios are clamped to +-20 before exp, so that nothing
    overflows; tokens of weight 0 are never looked at, whatever stands there. Gradients reach logprobs_BT and
    entropy_BT alone.

    The metrics are weighted by weights_BT too: their sum over a minibatch's microbatches is the minibatch's
    mean. policy_loss, clip_fraction (the clipped branch is the larger one), dual_clip_fraction, approx_kl
    (old - logprobs), ratio_mean; where the tensors are given entropy, ref_kl, rollout_kl (rollout - old),
    tis_mean, tis_clip_fraction.

    Args:
        logprobs_BT: nats, the policy being updated.
        old_logprobs_BT: nats, the policy before this step's update.
        advantages_BT: from `prime_advantages`.
        weights_BT: rows of `aggregation_weights_BT` of the global minibatch.
        settings: options.
        entropy_BT: nats; needed where entropy_coef is not 0.
        ref_logprobs_BT: nats; needed where kl_coef is not 0.
        rollout_logprobs_BT: nats, as the rollout engine reported; needed where tis_cap is set.

    Raises:
        ValueError: shapes differ, or a tensor that the settings need is missing.
    """
    check_shapes(
        logprobs_BT.shape,
        old_logprobs_BT=old_logprobs_BT,
        advantages_BT=advantages_BT,
        weights_BT=weights_BT,
        entropy_BT=entropy_BT,
        ref_logprobs_BT=ref_logprobs_BT,
        rollout_logprobs_BT=rollout_logprobs_BT,
    )
    weights_BT = weights_BT.detach()
    used_BT = weights_BT != 0
    logprobs_BT = zero_padding(as_float(logprobs_BT), used_BT)
    old_BT = _constant(old_logprobs_BT, used_BT)
    token_loss_BT, metric_BT = _clipped_surrogate(
        logprobs_BT - old_BT, _constant(advantages_BT, used_BT), settings
    )
    rollout_BT = _masked(rollout_logprobs_BT, used_BT)
    token_loss_BT = _correct_for_engine(token_loss_BT, metric_BT, settings, old_BT, rollout_BT)
    metric_BT["policy_loss"] = token_loss_BT
    entropy_BT, ref_BT = _masked(entropy_BT, used_BT), _masked(ref_logprobs_BT, used_BT)
    token_loss_BT = _add_regularisers(token_loss_BT, metric_BT, settings, logprobs_BT, entropy_BT, ref_BT)
    loss = (weights_BT * token_loss_BT).sum()
    metrics = {name: (weights_BT * value_BT.detach()).sum() for name, value_BT in metric_BT.items()}
    return loss, metrics


def _clipped_surrogate(
    log_ratio_BT: Tensor, advantages_BT: Tensor, settings: PolicyLossSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Per-token loss of Eq. 6 with optional dual clip, and its metrics by token."""
    ratio_BT = _safe_exp(log_ratio_BT)
    plain_BT = -advantages_BT * ratio_BT
    clipped_BT = -advantages_BT * ratio_BT.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    loss_BT = torch.maximum(plain_BT, clipped_BT)
    metric_BT = {
        "clip_fraction": (clipped_BT > plain_BT).float(),
        "dual_clip_fraction": torch.zeros_like(loss_BT),
        "approx_kl": -log_ratio_BT,
        "ratio_mean": ratio_BT,
    }
    if settings.dual_clip is not None:
        bound_BT = -settings.dual_clip * advantages_BT
        exceeds_BT = (advantages_BT < 0) & (loss_BT > bound_BT)
        loss_BT = torch.where(exceeds_BT, bound_BT, loss_BT)
        metric_BT["dual_clip_fraction"] = exceeds_BT.float()
    return loss_BT, metric_BT


def _correct_for_engine(
    token_loss_BT: Tensor,
    metric_BT: dict[str, Tensor],
    settings: PolicyLossSettings,
    old_BT: Tensor,
    rollout_BT: Tensor | None,
) -> Tensor:
    """Weigh the loss by the truncated ratio of trainer to engine; note how far the two are apart."""
    if rollout_BT is None:
        if settings.tis_cap is not None:
            raise ValueError("tis_cap is set but rollout_logprobs_BT is missing: have the engine return them")
        return token_loss_BT
    log_weight_BT = old_BT - rollout_BT.detach()
    metric_BT["rollout_kl"] = -log_weight_BT
    if settings.tis_cap is None:
        return token_loss_BT
    weight_BT = _safe_exp(log_weight_BT)
    metric_BT["tis_mean"] = weight_BT.clamp(max=settings.tis_cap)
    metric_BT["tis_clip_fraction"] = (weight_BT > settings.tis_cap).float()
    return token_loss_BT * metric_BT["tis_mean"]


def _add_regularisers(
    token_loss_BT: Tensor,
    metric_BT: dict[str, Tensor],
    settings: PolicyLossSettings,
    logprobs_BT: Tensor,
    entropy_BT: Tensor | None,
    ref_logprobs_BT: Tensor | None,
) -> Tensor:
    """Add the entropy bonus and the reference KL; note them in metric_BT where their tensors are given."""
    if entropy_BT is not None:
        metric_BT["entropy"] = entropy_BT
    if ref_logprobs_BT is not None:
        metric_BT["ref_kl"] = _kl(logprobs_BT - ref_logprobs_BT.detach(), settings.kl_estimator)
    if settings.entropy_coef != 0:
        if entropy_BT is None:
            raise ValueError(f"entropy_coef is {settings.entropy_coef} but entropy_BT is missing")
        token_loss_BT = token_loss_BT - settings.entropy_coef * entropy_BT
    if settings.kl_coef != 0:
        if ref_logprobs_BT is None:
            raise ValueError(
                f"kl_coef is {settings.kl_coef} but ref_logprobs_BT is missing; load the reference"
            )
        token_loss_BT = token_loss_BT + settings.kl_coef * metric_BT["ref_kl"]
    return token_loss_BT


def _kl(difference_BT: Tensor, estimator: KLEstimator) -> Tensor:
    """Estimate KL(policy || reference) by token from logprobs - ref_logprobs."""
    if estimator == "k1":
        return difference_BT
    if estimator == "k2":
        return difference_BT.square() / 2
    return _safe_exp(-difference_BT) - 1 + difference_BT


def _safe_exp(log_ratio_BT: Tensor) -> Tensor:
    return log_ratio_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _masked(values_BT: Tensor | None, used_BT: Tensor) -> Tensor | None:
    return None if values_BT is None else zero_padding(as_float(values_BT), used_BT)


def _constant(values_BT: Tensor, used_BT: Tensor) -> Tensor:
    return zero_padding(as_float(values_BT), used_BT).detach()
