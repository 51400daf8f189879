"""Autoregressive decoding of one batch of requests with an HF causal language model.

Inputs are left-padded, and each distinct input is prefilled once; its row of the cache is then copied to all of its
requests. When a quarter of the rows have finished they are removed from the batch, so that the last tokens of long
responses do not cost a full batch.

Shapes: U distinct inputs, B requests still in the batch, L tokens so far, V vocab.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from megatron_prime.engines.local.sampling import sample_tokens
from megatron_prime.engines.requests import StreamKey
from megatron_prime.types import FinishReason, SamplingParams

_COMPACT_BELOW = 0.75
"""Finished rows are removed when a smaller share of the batch is unfinished: O(log B) copies of the cache."""
_PADDING_ID = 0
"""Token id of the padding; any valid one will do, since the attention mask hides it."""


@dataclass(frozen=True, slots=True)
class Request:
    """A turn to be sampled."""

    input_ids: tuple[int, ...]
    """The prompt, and the turns and replies so far; not empty."""
    key: StreamKey
    max_tokens: int
    """Most tokens of the turn, at least 1."""
    offset: int = 0
    """Number of the response's tokens in input_ids, whose random numbers are skipped."""


@dataclass(slots=True)
class DecodedTurn:
    """A turn while it is sampled."""

    max_tokens: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason = FinishReason.LENGTH


@dataclass(slots=True)
class _Batch:
    """The rows being decoded."""

    cache: DynamicCache
    attention_mask_BL: Tensor
    positions_B: Tensor
    """Position of the next token."""
    logits_BV: Tensor
    """Logits of the next token."""
    last_tokens_B: Tensor
    """Tokens that were sampled but are not in the cache yet."""
    turns: list[DecodedTurn]
    """The turn of each row, shared with the caller."""
    uniforms_BT: Tensor
    unfinished: list[bool]

    def select(self, rows: list[int]) -> None:
        """Keep these rows, in this order. Before decoding starts, rows may be repeated."""
        rows_B = torch.tensor(rows, device=self.positions_B.device)
        self.cache.batch_select_indices(rows_B)
        self.attention_mask_BL = self.attention_mask_BL[rows_B]
        self.positions_B = self.positions_B[rows_B]
        self.logits_BV = self.logits_BV[rows_B]
        self.last_tokens_B = self.last_tokens_B[rows_B]

    def compact(self) -> None:
        """Remove the finished rows if there are enough of them."""
        rows = [row for row, unfinished in enumerate(self.unfinished) if unfinished]
        if not rows or len(rows) >= _COMPACT_BELOW * len(self.unfinished):
            return
        self.select(rows)
        self.turns = [self.turns[row] for row in rows]
        self.uniforms_BT = self.uniforms_BT[torch.tensor(rows, device=self.uniforms_BT.device)]
        self.unfinished = [True] * len(rows)


@torch.inference_mode()
def decode_batch(
    model: PreTrainedModel, requests: Sequence[Request], params: SamplingParams
) -> list[DecodedTurn]:
    """Sample all requests at once.

    Memory: the KV cache of len(requests) sequences as long as the longest input plus the longest turn, about twice
    that for one layer while it grows, and a few [B, V] tensors.

    Args:
        model: an HF causal LM in eval mode, whole on one device.
        requests: at least one; equal inputs share their prefill.
        params: sampling parameters; the limits are those of the requests.

    Returns:
        The turn of each request, in order.

    Raises:
        RuntimeError: the model's log-probs are not finite.
    """
    batch = _prefill(model, requests)
    turns = list(batch.turns)
    for position in range(max(request.max_tokens for request in requests)):
        _pick(batch, position, params)
        if not any(batch.unfinished):
            break
        batch.compact()
        _forward(model, batch)
    return turns


def _prefill(model: PreTrainedModel, requests: Sequence[Request]) -> _Batch:
    """Compute the distinct inputs, and copy their rows of the cache to the requests."""
    device = model.device
    row_of_input: dict[tuple[int, ...], int] = {}
    rows = [row_of_input.setdefault(request.input_ids, len(row_of_input)) for request in requests]
    lengths = [len(token_ids) for token_ids in row_of_input]
    input_ids_UL = torch.full((len(lengths), max(lengths)), _PADDING_ID)
    mask_UL = torch.zeros_like(input_ids_UL)
    for row, token_ids in enumerate(row_of_input):
        input_ids_UL[row, -len(token_ids) :] = torch.tensor(token_ids)
        mask_UL[row, -len(token_ids) :] = 1
    mask_UL = mask_UL.to(device)
    # Padding is on the left, so that the next token of every row is appended in the same column of the cache.
    cache = DynamicCache(config=model.config)
    output = model(
        input_ids=input_ids_UL.to(device),
        attention_mask=mask_UL,
        position_ids=(mask_UL.cumsum(dim=-1) - 1).clamp_(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    uniforms_BT = np.zeros((len(requests), max(request.max_tokens for request in requests)))
    for row, request in enumerate(requests):
        numbers = request.key.uniforms(request.offset + request.max_tokens)
        uniforms_BT[row, : request.max_tokens] = numbers[request.offset :]
    batch = _Batch(
        cache=cache,
        attention_mask_BL=mask_UL,
        positions_B=torch.tensor(lengths, device=device),
        logits_BV=output.logits[:, -1],
        last_tokens_B=input_ids_UL[:, -1].to(device),
        turns=[DecodedTurn(request.max_tokens) for request in requests],
        uniforms_BT=torch.from_numpy(uniforms_BT).to(device),
        unfinished=[True] * len(requests),
    )
    # Only now the batch grows from U inputs to B requests: the inputs were computed once each.
    batch.select(rows)
    return batch


def _forward(model: PreTrainedModel, batch: _Batch) -> None:
    """Append the last token of each row to the cache and compute the next logits."""
    tokens_B1 = batch.last_tokens_B[:, None]
    batch.attention_mask_BL = torch.cat([batch.attention_mask_BL, torch.ones_like(tokens_B1)], dim=-1)
    output = model(
        input_ids=tokens_B1,
        attention_mask=batch.attention_mask_BL,
        position_ids=batch.positions_B[:, None],
        past_key_values=batch.cache,
        use_cache=True,
        logits_to_keep=1,
    )
    batch.logits_BV = output.logits[:, -1]
    # Positions count a row's own tokens, unlike columns of the cache, which include its padding.
    batch.positions_B = batch.positions_B + 1


def _pick(batch: _Batch, position: int, params: SamplingParams) -> None:
    """Sample one token per row and append it to the unfinished turns."""
    # Finished rows are sampled as well: leaving them out would cost a copy of the cache at every token.
    tokens_B, logprobs_B = sample_tokens(
        batch.logits_BV, batch.uniforms_BT[:, position], params.temperature, params.top_p
    )
    for row, (token, logprob) in enumerate(zip(tokens_B.tolist(), logprobs_B.tolist(), strict=True)):
        if not batch.unfinished[row]:
            continue
        if not math.isfinite(logprob):
            raise RuntimeError("the rollout model's log-probs are not finite: its weights have diverged")
        turn = batch.turns[row]
        turn.token_ids.append(token)
        turn.logprobs.append(logprob)
        if token in params.stop_token_ids:
            turn.finish_reason = FinishReason.STOP
            batch.unfinished[row] = False
        elif len(turn.token_ids) == turn.max_tokens:
            batch.unfinished[row] = False
    batch.last_tokens_B = tokens_B
