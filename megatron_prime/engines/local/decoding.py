"""Autoregressive decoding of one batch of requests with an HF causal language model.

Inputs are left-padded, and each distinct input is prefilled once; its row of the cache is then copied to all of its
requests. When a quarter of the rows have finished they are removed from the batch, so that the last tokens of long
responses do not cost a full batch.

Of a response with an environment, the turns so far stay in a `KeptCache`: each turn computes the tokens since the last.

Shapes: U distinct inputs, B requests still in the batch, L tokens so far, V vocab.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from megatron_prime.engines.local.growing_cache import growing_cache
from megatron_prime.engines.local.kept_cache import KeptCache
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
    keys: list[StreamKey]
    turns: list[DecodedTurn]
    """The turn of each row, shared with the caller."""
    uniforms_BT: Tensor
    unfinished: list[bool]
    num_cached: int = 0
    """Tokens of the turns that are in the cache."""

    def rows(self, is_unfinished: bool) -> "_Batch":
        """Return the unfinished rows or the others, as copies."""
        places = [row for row, unfinished in enumerate(self.unfinished) if unfinished is is_unfinished]
        rows_B = torch.tensor(places, device=self.positions_B.device)
        return _Batch(
            cache=_selected(self.cache, rows_B),
            attention_mask_BL=self.attention_mask_BL[rows_B],
            positions_B=self.positions_B[rows_B],
            logits_BV=self.logits_BV[rows_B],
            last_tokens_B=self.last_tokens_B[rows_B],
            keys=[self.keys[row] for row in places],
            turns=[self.turns[row] for row in places],
            uniforms_BT=self.uniforms_BT[rows_B],
            unfinished=[is_unfinished] * len(places),
            num_cached=self.num_cached,
        )

    def keep(self, kept: KeptCache) -> None:
        """Hand the rows over; they are not decoded further."""
        mask_BL = self.attention_mask_BL.clone()
        for row, turn in enumerate(self.turns):
            # A row that finished early was computed further, with tokens that are not its own.
            surplus = self.num_cached - len(turn.token_ids)
            if surplus > 0:
                mask_BL[row, -surplus:] = 0
        kept.add(self.keys, self.cache, mask_BL)


@torch.inference_mode()
def decode_batch(
    model: PreTrainedModel, requests: Sequence[Request], params: SamplingParams, kept: KeptCache | None = None
) -> list[DecodedTurn]:
    """Sample all requests at once.

    Memory: the KV cache of len(requests) sequences as long as the longest input plus the longest turn and
    `growing_cache.ROOM_TOKENS`, about twice that for one layer while it grows, and a few [B, V] tensors.

    Args:
        model: an HF causal LM in eval mode, whole on one device.
        requests: at least one; equal inputs share their prefill.
        params: sampling parameters; the limits are those of the requests.
        kept: the cache of earlier turns, sampled with the same weights; it is then that of these requests. None if no
            turns follow.

    Returns:
        The turn of each request, in order.

    Raises:
        RuntimeError: the model's log-probs are not finite.
    """
    by_key = {request.key: request for request in requests}
    turns: dict[StreamKey, DecodedTurn] = {}
    if kept is not None:
        continued = [by_key.pop(key) for key in kept.keys if key in by_key]
        cache, mask_BL = kept.take([request.key for request in continued])
        if continued:
            turns |= _decode(model, _extend(model, continued, cache, mask_BL), params, kept)
    if by_key:
        turns |= _decode(model, _prefill(model, list(by_key.values())), params, kept)
    return [turns[request.key] for request in requests]


def _decode(
    model: PreTrainedModel, batch: _Batch, params: SamplingParams, kept: KeptCache | None
) -> dict[StreamKey, DecodedTurn]:
    """Sample the turns of a batch whose inputs are in its cache."""
    turns = dict(zip(batch.keys, batch.turns, strict=True))
    for position in range(batch.uniforms_BT.shape[1]):
        _pick(batch, position, params)
        if not any(batch.unfinished):
            break
        # Finished rows are removed when there are enough of them.
        if sum(batch.unfinished) < _COMPACT_BELOW * len(batch.unfinished):
            if kept is not None:
                batch.rows(is_unfinished=False).keep(kept)
            batch = batch.rows(is_unfinished=True)
        _forward(model, batch)
    if kept is not None:
        batch.keep(kept)
    return turns


def _prefill(model: PreTrainedModel, requests: Sequence[Request]) -> _Batch:
    """Compute the distinct inputs, and copy their rows of the cache to the requests."""
    row_of_input: dict[tuple[int, ...], int] = {}
    rows = [row_of_input.setdefault(request.input_ids, len(row_of_input)) for request in requests]
    cache = growing_cache(model.config)
    mask_UL = torch.zeros((len(row_of_input), 0), dtype=torch.int64, device=model.device)
    logits_UV, mask_UL = _append(model, cache, mask_UL, list(row_of_input))
    # Only now the batch grows from U inputs to B requests: the inputs were computed once each.
    rows_B = torch.tensor(rows, device=model.device)
    return _begun(_selected(cache, rows_B), mask_UL[rows_B], logits_UV[rows_B], requests)


def _extend(
    model: PreTrainedModel, requests: Sequence[Request], cache: DynamicCache, mask_BL: Tensor
) -> _Batch:
    """Compute the tokens of the requests that the cache does not have."""
    lengths = mask_BL.sum(dim=1).tolist()
    for row, request in enumerate(requests):
        # After an empty reply of the environment the cache may have all tokens. The logits behind the last one are
        # gone, so it is computed again.
        if lengths[row] == len(request.input_ids):
            mask_BL[row, -1] = 0
            lengths[row] -= 1
    new_ids = [request.input_ids[length:] for request, length in zip(requests, lengths, strict=True)]
    logits_BV, mask_BL = _append(model, cache, mask_BL, new_ids)
    return _begun(cache, mask_BL, logits_BV, requests)


def _append(
    model: PreTrainedModel, cache: DynamicCache, mask_BL: Tensor, new_ids: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Append tokens to the rows of a cache, at least one to each; return the logits behind them, and the new mask."""
    ids_BN = torch.full((len(new_ids), max(map(len, new_ids))), _PADDING_ID)
    mask_BN = torch.zeros_like(ids_BN)
    # Padding is on the left, so that the next token of every row is appended in the same column of the cache.
    for row, token_ids in enumerate(new_ids):
        ids_BN[row, -len(token_ids) :] = torch.tensor(token_ids)
        mask_BN[row, -len(token_ids) :] = 1
    mask_BL = torch.cat([mask_BL, mask_BN.to(model.device)], dim=1)
    positions_BL = (mask_BL.cumsum(dim=-1) - 1).clamp_(min=0)
    output = model(
        input_ids=ids_BN.to(model.device),
        attention_mask=mask_BL,
        position_ids=positions_BL[:, -ids_BN.shape[1] :],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1], mask_BL


def _begun(cache: DynamicCache, mask_BL: Tensor, logits_BV: Tensor, requests: Sequence[Request]) -> _Batch:
    """Return the batch of requests whose inputs are in the cache."""
    device = logits_BV.device
    uniforms_BT = np.zeros((len(requests), max(request.max_tokens for request in requests)))
    for row, request in enumerate(requests):
        numbers = request.key.uniforms(request.offset + request.max_tokens)
        uniforms_BT[row, : request.max_tokens] = numbers[request.offset :]
    return _Batch(
        cache=cache,
        attention_mask_BL=mask_BL,
        positions_B=mask_BL.sum(dim=1),
        logits_BV=logits_BV,
        last_tokens_B=torch.tensor([request.input_ids[-1] for request in requests], device=device),
        keys=[request.key for request in requests],
        turns=[DecodedTurn(request.max_tokens) for request in requests],
        uniforms_BT=torch.from_numpy(uniforms_BT).to(device),
        unfinished=[True] * len(requests),
    )


def _selected(cache: DynamicCache, rows_B: Tensor) -> DynamicCache:
    """Return rows of a cache, in this order and maybe repeated, as copies."""
    selected = copy.copy(cache)
    selected.layers = [copy.copy(layer) for layer in cache.layers]
    selected.batch_select_indices(rows_B)
    return selected


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
    batch.num_cached += 1
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
