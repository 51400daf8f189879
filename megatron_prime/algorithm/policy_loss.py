"""The policy's loss as a sum with weights fixed beforehand: a surrogate, and the options that every surrogate shares.

No mean is taken here. `aggregation_weights_BT` turns the mask of the whole minibatch into weights; a microbatch passes
its rows of them, and losses, gradients and metrics add up to the same numbers for any split.

Shapes: B responses, T response tokens (right padded).
"""

from typing import Protocol, get_args

from torch import Tensor

from megatron_prime.algorithm.checks import check_choice, check_shapes
from megatron_prime.algorithm.correction import correction_weights_BT
from megatron_prime.algorithm.registry import POLICY_LOSSES
from megatron_prime.algorithm.tensor_ops import as_float, safe_exp, zero_padding
from megatron_prime.config.tables.policy import NO_CORRECTION, Aggregation, KLEstimator, PolicyConfig


class PolicyLoss(Protocol):
    """The surrogate that ties the policy's log-probs to advantages; constructed with the [policy] section.

    Built-in ones are the modules of `algorithm.policy_losses`.
    """

    def token_losses_BT(  # noqa: N802
        self, logprobs_BT: Tensor, old_logprobs_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each token, [B, T], and metrics by token, each [B, T].

        Rows are whole responses of one microbatch, so a sequence-level ratio can be taken here; a statistic
        over several responses cannot. Gradients must reach logprobs_BT alone.

        Args:
            logprobs_BT: nats, the policy being updated; 0 where the mask is false, as in the two that follow.
            old_logprobs_BT: nats, the policy before this step's update, detached.
            advantages_BT: detached.
            mask_BT: bool, the tokens that have a weight in the loss; values elsewhere are ignored.
        """
        ...


def aggregation_weights_BT(  # noqa: N802
    trained_mask_BT: Tensor, mode: Aggregation, max_response_tokens: int | None = None
) -> Tensor:
    """Return float32 weights of the tokens of one global minibatch, 0 outside the mask.

    token: 1 / number of trained tokens. sequence: 1 / (number of responses with any * number of those of the
    response). constant: 1 / (number of responses with any * max_response_tokens), Dr. GRPO (arXiv 2503.20783). Those of
    token and sequence sum to 1.

    Args:
        trained_mask_BT: bool or 0/1, the tokens that the policy wrote; replies of an environment are holes.
        mode: the average.
        max_response_tokens: the longest response that there may be; needed for constant.

    Raises:
        ValueError: an unknown mode, a minibatch without a trained token, or no positive constant where one is needed.
    """
    check_choice("mode", mode, get_args(Aggregation))
    mask_BT = trained_mask_BT.bool()
    length_B1 = mask_BT.sum(dim=1, keepdim=True)
    if not bool(length_B1.any()):
        raise ValueError("the minibatch has no response token, so its loss has no weights; drop it")
    if mode == "token":
        return mask_BT.float() / length_B1.sum()
    num_responses = (length_B1 > 0).sum()
    if mode == "constant":
        if max_response_tokens is None or max_response_tokens < 1:
            raise ValueError(f"aggregation 'constant' needs max_response_tokens, not {max_response_tokens}")
        return mask_BT.float() / (num_responses * max_response_tokens)
    return mask_BT.float() / (length_B1.clamp(min=1) * num_responses)


def policy_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    weights_BT: Tensor,
    config: PolicyConfig,
    entropy_BT: Tensor | None = None,
    ref_logprobs_BT: Tensor | None = None,
    rollout_logprobs_BT: Tensor | None = None,
    total_weight: Tensor | float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return (loss, metrics): the weighted sum over tokens of the surrogate and its options, and detached sums.

    loss = sum w * (c * surrogate - entropy_coef * entropy + kl_coef * kl), with the surrogate that `policy.loss`
    names, and the weights c of `correction.correction_weights_BT`, which are 1 without a correction. With stale batches
    this is decoupled PPO (AReaL, arXiv 2505.24298): the proximal policy of the clipped ratio is the one before the
    step, and c corrects for the behaviour policy that sampled. Log-ratios are clamped to +-20 before exp, so that
    nothing overflows; tokens of weight 0 are never looked at, whatever stands there. Gradients reach logprobs_BT and
    entropy_BT alone.

    The metrics are weighted by weights_BT too, all but policy_loss divided by total_weight: their sum over a
    minibatch's microbatches is the minibatch's mean. policy_loss and those of the surrogate (for ppo_clip
    clip_fraction, dual_clip_fraction, approx_kl, ratio_mean); where the tensors are given entropy and
    ref_kl.

    Args:
        logprobs_BT: nats, the policy being updated.
        old_logprobs_BT: nats, the policy before this step's update.
        advantages_BT: from `prime_advantages`.
        weights_BT: rows of `aggregation_weights_BT` of the global minibatch.
        config: the [policy] section.
        entropy_BT: nats; needed where entropy_coef is not 0.
        ref_logprobs_BT: nats; needed where kl_coef is not 0.
        rollout_logprobs_BT: nats, as the rollout engine reported; needed for a correction.
        total_weight: sum of the weights of the whole minibatch.

    Raises:
        ValueError: shapes differ, or a tensor that the options need is missing.
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
    surrogate: PolicyLoss = POLICY_LOSSES.load(config.loss)(config)
    token_loss_BT, metric_BT = surrogate.token_losses_BT(
        logprobs_BT, old_BT, _constant(advantages_BT, used_BT), used_BT
    )
    if config.correction not in NO_CORRECTION:
        if rollout_logprobs_BT is None:
            raise ValueError(
                f"policy.correction is {config.correction!r} but rollout_logprobs_BT is missing: have the engine "
                "return them"
            )
        token_loss_BT = token_loss_BT * correction_weights_BT(old_BT, rollout_logprobs_BT, used_BT, config)[0]
    metric_BT["policy_loss"] = token_loss_BT
    entropy_BT, ref_BT = _masked(entropy_BT, used_BT), _masked(ref_logprobs_BT, used_BT)
    token_loss_BT = _add_regularizers(token_loss_BT, metric_BT, config, logprobs_BT, entropy_BT, ref_BT)
    loss = (weights_BT * token_loss_BT).sum()
    sums = {name: (weights_BT * value_BT.detach()).sum() for name, value_BT in metric_BT.items()}
    return loss, {
        name: value if name == "policy_loss" else value / total_weight for name, value in sums.items()
    }


def _add_regularizers(
    token_loss_BT: Tensor,
    metric_BT: dict[str, Tensor],
    config: PolicyConfig,
    logprobs_BT: Tensor,
    entropy_BT: Tensor | None,
    ref_logprobs_BT: Tensor | None,
) -> Tensor:
    """Add the entropy bonus and the reference KL; put both into metric_BT where their tensors are given."""
    if entropy_BT is not None:
        metric_BT["entropy"] = entropy_BT
    if ref_logprobs_BT is not None:
        metric_BT["ref_kl"] = _kl(logprobs_BT - ref_logprobs_BT.detach(), config.kl_estimator)
    if config.entropy_coef != 0:
        if entropy_BT is None:
            raise ValueError(f"entropy_coef is {config.entropy_coef} but entropy_BT is missing")
        token_loss_BT = token_loss_BT - config.entropy_coef * entropy_BT
    if config.kl_coef != 0:
        if ref_logprobs_BT is None:
            raise ValueError(
                f"kl_coef is {config.kl_coef} but ref_logprobs_BT is missing; load the reference"
            )
        token_loss_BT = token_loss_BT + config.kl_coef * metric_BT["ref_kl"]
    return token_loss_BT


def _kl(difference_BT: Tensor, estimator: KLEstimator) -> Tensor:
    """Estimate KL(policy || reference) of each token from logprobs - ref_logprobs."""
    if estimator == "k1":
        return difference_BT
    if estimator == "k2":
        return difference_BT.square() / 2
    return safe_exp(-difference_BT) - 1 + difference_BT


def _masked(values_BT: Tensor | None, used_BT: Tensor) -> Tensor | None:
    return None if values_BT is None else zero_padding(as_float(values_BT), used_BT)


def _constant(values_BT: Tensor, used_BT: Tensor) -> Tensor:
    return zero_padding(as_float(values_BT), used_BT).detach()
