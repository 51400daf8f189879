"""Picking tokens from logits with random numbers that belong to the request, not to the batch.

Each response owns a counter-based stream keyed by (seed, stream_key, prompt index, draw index); its t-th
number picks its t-th token by inverting the cumulative distribution. So a response is the same however the
requests are batched or spread over ranks, and a resumed run repeats it.

Shapes: B rows, V vocab, T response tokens.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megatron_prime.config.tables.rollout import RolloutConfig
from megatron_prime.types import SamplingParams

_MAX_ELEMENTS_AT_ONCE = 1 << 24
"""Bound on rows * V of the float64 temporaries: 128 MiB each."""


@dataclass(frozen=True, slots=True)
class StreamKey:
    """Names one response's random stream. All fields in [0, 2**64)."""

    seed: int
    stream_key: int
    prompt_index: int
    draw_index: int
    """sample_index, plus group_size for every earlier occurrence of the prompt in the call."""

    def uniforms(self, num_tokens: int) -> np.ndarray:
        """float64 [num_tokens] in [0, 1); a longer request begins with the numbers of a shorter one."""
        packed = struct.pack("<4Q", self.seed, self.stream_key, self.prompt_index, self.draw_index)
        key = int.from_bytes(hashlib.blake2b(packed, digest_size=16).digest(), "little")
        return np.random.Generator(np.random.Philox(key=key)).random(num_tokens)


def training_sampling(config: RolloutConfig, stop_token_ids: Sequence[int]) -> SamplingParams:
    """How training rollouts are sampled."""
    return SamplingParams(
        max_response_tokens=config.max_response_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        stop_token_ids=tuple(stop_token_ids),
    )


def check_sampling(params: SamplingParams, group_size: int, stream_key: int) -> None:
    """Raises ValueError for arguments of `Engine.generate` that make no sense."""
    if params.max_response_tokens < 1:
        raise ValueError(f"max_response_tokens = {params.max_response_tokens} must be at least 1")
    if not 0 <= params.temperature < float("inf"):
        raise ValueError(f"temperature = {params.temperature} must be finite and not negative")
    if not 0 < params.top_p <= 1:
        raise ValueError(f"top_p = {params.top_p} must be in (0, 1]")
    if group_size < 1:
        raise ValueError(f"group_size = {group_size} must be at least 1")
    if not 0 <= stream_key < 1 << 64:
        raise ValueError(f"stream_key = {stream_key} must be in [0, 2**64)")


def sample_tokens(
    logits_BV: Tensor, uniforms_B: Tensor, temperature: float, top_p: float
) -> tuple[Tensor, Tensor]:
    """Pick one token a row.

    Args:
        logits_BV: floating point, any dtype.
        uniforms_B: float64 in [0, 1); unused when greedy.
        temperature: 0 takes the most likely token.
        top_p: nucleus mass to sample from, in (0, 1].

    Returns:
        tokens_B (int64) and logprobs_B (float32, nats): log-probability under the full distribution at the
        temperature (at 1 when greedy). The nucleus is not counted in, so that it compares with the trainer's.
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
        # float64: in a float32 cumulative sum over 150k entries, rounding displaces the boundaries of tokens.
        probs_BV = scaled_BV.double().softmax(dim=-1)
        tokens_B = invert_cdf(nucleus(probs_BV, top_p), uniforms_B)
    chosen_B = scaled_BV.gather(1, tokens_B[:, None])[:, 0]
    return tokens_B, chosen_B - scaled_BV.logsumexp(dim=-1)


def nucleus(probs_BV: Tensor, top_p: float) -> Tensor:
    """Zero all but the smallest set of likeliest tokens whose mass reaches top_p, at least one.

    Not renormalised. Among equal probabilities the lower token ids stay.
    """
    if top_p >= 1:
        return probs_BV
    sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    mass_before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
    # Nothing comes before the likeliest token, so it stays for any top_p above 0.
    outside_BV = mass_before_BV >= top_p
    return torch.zeros_like(probs_BV).scatter(1, order_BV, sorted_BV.masked_fill(outside_BV, 0))


def invert_cdf(weights_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """The token at which the cumulative weight first exceeds uniform * total; never one of weight zero.

    Args:
        weights_BV: float64, not negative, a positive sum in each row; need not sum to 1.
        uniforms_B: float64 in [0, 1).

    Returns:
        int64 [B].
    """
    cumulative_BV = weights_BV.cumsum(dim=-1)
    threshold_B1 = (uniforms_B * cumulative_BV[:, -1])[:, None]
    # right=True: the first entry *above* the threshold; a weight of zero never raises the sum above it.
    tokens_B1 = torch.searchsorted(cumulative_BV, threshold_B1, right=True)
    # A row of NaN ends past the vocabulary; clamped, its log-probability is NaN, which decoding reports.
    return tokens_B1[:, 0].clamp_(max=weights_BV.shape[1] - 1)
