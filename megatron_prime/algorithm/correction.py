"""The correction of the policy's loss for batches that another policy sampled, and what it costs.

Three policies are involved: the one being trained, the proximal one (the weights that began the step, whose log-probs
the trainer computes) and the behaviour policy, which sampled the batch. The surrogate compares the first two; here the
last two are compared. They differ because the engine rounds otherwise, and by whole updates where batches are sampled
ahead (`rollout.max_staleness`). The engine reports each token's log-prob under the version that sampled this token, at
the sampling temperature and without any truncation, which `check` therefore refuses in training.

Where several versions sampled a response (`rollout.partial`), the behaviour policy takes each token from the version
that sampled it. The probability of a response is still the product of those of its tokens, so that all ratios hold as
they are; and the mean of the other outcomes of a group remains a baseline that does not depend on the response itself.

Shapes: B responses, T response tokens (right padded).
"""

from typing import Protocol

import torch
from torch import Tensor

from megatron_prime.algorithm.registry import IMPORTANCE_RATIOS
from megatron_prime.algorithm.tensor_ops import as_float, safe_exp, zero_padding
from megatron_prime.config.tables.policy import NO_CORRECTION, PolicyConfig


class ImportanceRatio(Protocol):
    """The ratio that weighs each token; constructed with the [policy] section.

    Built-in ones are the modules of `algorithm.importance_ratios`.
    """

    def log_ratios_BT(self, log_ratios_BT: Tensor, mask_BT: Tensor) -> Tensor:  # noqa: N802
        """Return the logarithm of the weight of each token before it is bounded, [B, T].

        Rows are whole responses, so a ratio of a response can be taken here; a statistic over several cannot.

        Args:
            log_ratios_BT: nats, log-prob of the proximal minus that of the behaviour policy; 0 outside the mask.
            mask_BT: bool, the tokens that have a weight in the loss.
        """
        ...


def correction_weights_BT(  # noqa: N802
    prox_logprobs_BT: Tensor, rollout_logprobs_BT: Tensor, mask_BT: Tensor, config: PolicyConfig
) -> tuple[Tensor, Tensor]:
    """Return detached weights of the tokens, 1 outside the mask, and which of them were out of bounds.

    With r the ratio that `policy.correction` names, and [l, h] = [policy.correction_low, correction_high]:

    - truncate: min(max(r, l), h). With l = 0 this is truncated importance sampling (IMPALA, arXiv 1802.01561).
    - mask: r where l <= r <= h, else 0. For tokens this is the rule of IcePop (Ring-1T, arXiv 2510.18855), which takes
      the surrogate without l and h in its clip. Masked tokens still count in the mean of the loss.

    Args:
        prox_logprobs_BT: nats, the policy before this step's update.
        rollout_logprobs_BT: nats, as the rollout engine reported.
        mask_BT: bool, the tokens that have a weight in the loss; values elsewhere are ignored.
        config: the [policy] section, whose correction names a ratio.
    """
    log_ratios_BT = _log_ratios(prox_logprobs_BT, rollout_logprobs_BT, mask_BT)
    ratio: ImportanceRatio = IMPORTANCE_RATIOS.load(config.correction)(config)
    ratios_BT = safe_exp(zero_padding(ratio.log_ratios_BT(log_ratios_BT, mask_BT), mask_BT))
    low, high = config.correction_low, config.correction_high
    is_outside_BT = (ratios_BT < low) | (ratios_BT > high)
    if config.correction_outside == "mask":
        return ratios_BT.masked_fill(is_outside_BT, 0.0), is_outside_BT
    return ratios_BT.clamp(low, high), is_outside_BT


def correction_metrics(
    prox_logprobs_BT: Tensor, rollout_logprobs_BT: Tensor, mask_BT: Tensor, config: PolicyConfig
) -> dict[str, Tensor]:
    """Return how far the proximal policy is from the one that sampled a whole batch, and what the correction did.

    With the ratios r of proximal to behaviour policy, before any bound:

    - rollout_kl: mean over tokens of r - 1 - log r, the k3 estimate of KL(behaviour || proximal); never negative.
    - rollout_token_ess, rollout_response_ess: Kish's effective sample size (sum r)^2 / sum r^2, over the number of
      tokens and, with the ratios of whole responses, over that of responses: in (0, 1], and 1 if nothing differs.
    - with a correction correction_mean, the mean weight of the tokens, and correction_outside_fraction, the fraction of
      the tokens whose ratio was out of bounds.

    An empty mask gives zeros.

    Args:
        prox_logprobs_BT: nats, the policy before this step's update.
        rollout_logprobs_BT: nats, as the rollout engine reported.
        mask_BT: bool, the tokens that have a weight in the loss; all tokens of the batch, or the metrics depend on the
            layout.
        config: the [policy] section.
    """
    log_ratios_BT = _log_ratios(prox_logprobs_BT, rollout_logprobs_BT, mask_BT).double()
    num_tokens = mask_BT.sum().clamp(min=1)
    kl_BT = safe_exp(log_ratios_BT) - 1 - log_ratios_BT
    metrics = {
        "rollout_kl": kl_BT.sum() / num_tokens,
        "rollout_token_ess": _effective_share(log_ratios_BT, mask_BT),
        "rollout_response_ess": _effective_share(log_ratios_BT.sum(dim=1), mask_BT.any(dim=1)),
    }
    if config.correction not in NO_CORRECTION:
        weights_BT, is_outside_BT = correction_weights_BT(
            prox_logprobs_BT, rollout_logprobs_BT, mask_BT, config
        )
        metrics["correction_mean"] = zero_padding(weights_BT, mask_BT).double().sum() / num_tokens
        metrics["correction_outside_fraction"] = is_outside_BT.double().sum() / num_tokens
    return metrics


def _log_ratios(prox_logprobs_BT: Tensor, rollout_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return zero_padding(as_float(prox_logprobs_BT) - as_float(rollout_logprobs_BT), mask_BT).detach()


def _effective_share(log_weights: Tensor, mask: Tensor) -> Tensor:
    """Return (sum w)^2 / (n * sum w^2) of the n weights under the mask."""
    # A common factor changes nothing, and with the largest weight at 1 nothing overflows.
    log_weights = log_weights.masked_fill(~mask, -torch.inf)
    largest = log_weights.max().clamp(min=torch.finfo(log_weights.dtype).min)
    weights = (log_weights - largest).exp()
    return weights.sum().square() / (mask.sum() * weights.square().sum()).clamp(min=1)
