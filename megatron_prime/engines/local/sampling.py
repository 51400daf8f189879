"""Sampling of tokens from logits with random numbers that belong to the request, not to the batch.

The t-th number of a response's stream (`engines.requests.StreamKey`) selects its t-th token by inverting the cumulative
distribution. Thus a response is the same however the requests are batched or distributed over ranks, and a resumed run
repeats it.

Shapes: B rows, V vocab.
"""

import torch
from torch import Tensor

_MAX_ELEMENTS_AT_ONCE = 1 << 24
"""Most elements, rows * V, of the float64 temporaries: 128 MiB each."""


def sample_tokens(
    logits_BV: Tensor, uniforms_B: Tensor, temperature: float, top_p: float
) -> tuple[Tensor, Tensor]:
    """Sample one token per row.

    Args:
        logits_BV: floating point, any dtype.
        uniforms_B: float64 in [0, 1); unused when greedy.
        temperature: 0 takes the most likely token.
        top_p: nucleus mass to sample from, in (0, 1].

    Returns:
        tokens_B (int64), and logprobs_B (float32, nats) under the full distribution at the temperature (at 1 when
        greedy). They ignore top_p, so that they are comparable with the trainer's.
    """
    num_rows, num_vocab = logits_BV.shape
    chunk = max(1, _MAX_ELEMENTS_AT_ONCE // num_vocab)
    parts = [
        _sample_rows(logits_BV[start : start + chunk], uniforms_B[start : start + chunk], temperature, top_p)
        for start in range(0, num_rows, chunk)
    ]
    return torch.cat([tokens for tokens, _ in parts]), torch.cat([logprobs for _, logprobs in parts])


def _sample_rows(
    logits_BV: Tensor, uniforms_B: Tensor, temperature: float, top_p: float
) -> tuple[Tensor, Tensor]:
    scaled_BV = logits_BV.float()
    if temperature == 0:
        tokens_B = scaled_BV.argmax(dim=-1)
    else:
        scaled_BV = scaled_BV / temperature
        # In float32, rounding in a cumulative sum over 150k entries would shift the boundaries between tokens.
        probs_BV = scaled_BV.double().softmax(dim=-1)
        tokens_B = invert_cdf(nucleus(probs_BV, top_p), uniforms_B)
    # From the unfiltered distribution: the trainer's log-probs do not know about top_p either.
    chosen_B = scaled_BV.gather(1, tokens_B[:, None])[:, 0]
    return tokens_B, chosen_B - scaled_BV.logsumexp(dim=-1)


def nucleus(probs_BV: Tensor, top_p: float) -> Tensor:
    """Zero all but the smallest set of most likely tokens whose mass reaches top_p; at least one token stays.

    The result is not renormalized. Of equal probabilities the lower token ids stay.
    """
    if top_p >= 1:
        return probs_BV
    sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    mass_before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
    # The mass before the most likely token is 0, so that token stays for any top_p above 0.
    outside_BV = mass_before_BV >= top_p
    return torch.zeros_like(probs_BV).scatter(1, order_BV, sorted_BV.masked_fill(outside_BV, 0))


def invert_cdf(weights_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """Return the token at which the cumulative weight first exceeds uniform * total; never one of weight zero.

    Args:
        weights_BV: float64, not negative, with a positive sum in each row, which need not be 1.
        uniforms_B: float64 in [0, 1).

    Returns:
        int64 [B].
    """
    cumulative_BV = weights_BV.cumsum(dim=-1)
    threshold_B1 = (uniforms_B * cumulative_BV[:, -1])[:, None]
    # right=True finds the first entry *above* the threshold, and a weight of zero never raises the sum above it.
    tokens_B1 = torch.searchsorted(cumulative_BV, threshold_B1, right=True)
    # A row of NaN yields an index past the vocabulary; once clamped, its log-prob is NaN, which decoding reports.
    return tokens_B1[:, 0].clamp_(max=weights_BV.shape[1] - 1)
