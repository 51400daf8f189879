"""Log-probs and entropy of an output layer that is split over the vocabulary, without its logits.

The output layer, the softmax and the choice of the label are one function that walks tiles of tokens x vocabulary. Two
tiles are all that exists of the logits, forward and backward, whatever the number of tokens and the vocabulary. The
softmax's maximum and sums are corrected from tile to tile (Milakov and Gimelshein, arXiv 1805.02867); the backward pass
computes the logits again. Kernels that take the gradient in the forward pass instead save that product, but must know
each token's weight in the loss beforehand; a clipped ratio's depends on the log-prob itself.

Shape legend: R response tokens scored by one forward pass, C tokens of one chunk, H hidden size, V local vocabulary,
W vocabulary columns of one tile.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

TILE_ELEMENTS = {"cpu": 2**18, "cuda": 2**24}
"""Logits of one tile: small enough for a core's cache, or large enough to hide the launch of a kernel."""
FEWEST_COLUMNS = 256
"""Narrower tiles would waste the matrix product."""


@dataclass(frozen=True)
class VocabShard:
    """One rank's rows of the output layer."""

    group: dist.ProcessGroup
    first_row: int
    """Vocabulary index of the local row 0."""
    num_rows: int
    """Local rows that are real tokens: rows that pad the vocabulary come after them and are never touched."""
    hidden_is_gathered: bool
    """True under sequence parallelism, where the gather before the output layer already reduces hidden gradients."""


def output_logprobs(
    hidden_RH: torch.Tensor,
    weight_VH: torch.Tensor,
    labels_R: torch.Tensor,
    shard: VocabShard,
    temperature: float = 1.0,
    chunk_tokens: int = 1024,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of labels under an output layer that is split over the vocabulary, and the entropy.

    Args:
        hidden_RH: final hidden states, the same on every rank of `shard.group`.
        weight_VH: this rank's rows of the output layer.
        labels_R: int64 vocabulary indices.
        shard: which rows these are.
        temperature: logits are divided by it.
        chunk_tokens: tokens of one tile, at most; time hardly changes.

    Returns:
        `(logprobs_R, entropy_R)`, float32, nats, the same on every rank of the group; both differentiable.
    """
    return _OutputLogprobs.apply(hidden_RH, weight_VH, labels_R, temperature, chunk_tokens, shard)  # type: ignore[return-value]


class _Tiles:
    """The tiles of one pass, and the two buffers that they share.

    Args:
        hidden_RH: final hidden states.
        weight_VH: the output layer's local rows.
        temperature: logits are divided by it.
        chunk_tokens: tokens of one tile, at most.
        shard: which rows of the vocabulary.
    """

    def __init__(
        self,
        hidden_RH: torch.Tensor,
        weight_VH: torch.Tensor,
        temperature: float,
        chunk_tokens: int,
        shard: VocabShard,
    ) -> None:
        self._hidden_RH, self._weight_VH = hidden_RH, weight_VH
        self._temperature = temperature
        self._shard = shard
        self._num_tokens = max(1, min(chunk_tokens, len(hidden_RH)))
        elements = TILE_ELEMENTS[hidden_RH.device.type]
        self._num_columns = max(1, min(shard.num_rows, max(FEWEST_COLUMNS, elements // self._num_tokens)))
        size = self._num_tokens * self._num_columns
        self._logits = hidden_RH.new_empty(size, dtype=torch.float32)
        self._second = torch.empty_like(self._logits)
        self._rounded = None if hidden_RH.dtype == torch.float32 else hidden_RH.new_empty(size)

    def chunks(self) -> list[slice]:
        """Tokens of each row of tiles."""
        return _slices(len(self._hidden_RH), self._num_tokens)

    def columns(self) -> list[slice]:
        """Local vocabulary of each column of tiles."""
        return _slices(self._shard.num_rows, self._num_columns)

    def logits(self, chunk: slice, columns: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 logits [C, W] of a tile, and room of the same shape; both are overwritten by the next tile's."""
        shape = (chunk.stop - chunk.start, columns.stop - columns.start)
        size = shape[0] * shape[1]
        logits_CW, second_CW = self._logits[:size].view(shape), self._second[:size].view(shape)
        product_CW = logits_CW if self._rounded is None else self._rounded[:size].view(shape)
        torch.mm(self._hidden_RH[chunk], self._weight_VH[columns].T, out=product_CW)
        if self._rounded is not None:
            logits_CW.copy_(product_CW)
        if self._temperature != 1.0:
            logits_CW.div_(self._temperature)
        return logits_CW, second_CW

    def locate(self, labels_C: torch.Tensor, columns: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Whether each label lies in the tile's columns, and its column [C, 1] in the tile (any one where not)."""
        width = columns.stop - columns.start
        places_C = labels_C - (self._shard.first_row + columns.start)
        return (places_C >= 0) & (places_C < width), places_C.clamp(0, width - 1)[:, None]

    def to_weight_type(self, grad_CW: torch.Tensor) -> torch.Tensor:
        """The gradient of a tile's logits in the type of the weights."""
        if self._rounded is None:
            return grad_CW
        return self._rounded[: grad_CW.numel()].view_as(grad_CW).copy_(grad_CW)


class _OutputLogprobs(torch.autograd.Function):
    """log-softmax(hidden @ weight.T / temperature) at the labels, and its entropy."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,  # noqa: ANN401
        hidden_RH: torch.Tensor,
        weight_VH: torch.Tensor,
        labels_R: torch.Tensor,
        temperature: float,
        chunk_tokens: int,
        shard: VocabShard,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tiles = _Tiles(hidden_RH, weight_VH, temperature, chunk_tokens, shard)
        maximum_R = hidden_RH.new_full((len(labels_R),), -torch.inf, dtype=torch.float32)
        # Rows: sum of exp(logit - maximum), sum of exp(logit - maximum) * (logit - maximum), the label's logit
        sums_3R = maximum_R.new_zeros(3, len(labels_R))
        for chunk in tiles.chunks():
            for columns in tiles.columns():
                logits_CW, weights_CW = tiles.logits(chunk, columns)
                inside_C, places_C1 = tiles.locate(labels_R[chunk], columns)
                sums_3R[2, chunk] += torch.where(inside_C, logits_CW.gather(1, places_C1)[:, 0], 0.0)
                new_maximum_C = torch.maximum(maximum_R[chunk], logits_CW.amax(dim=1))
                _move_maximum(sums_3R[:, chunk], maximum_R[chunk], new_maximum_C)
                torch.exp(logits_CW.sub_(new_maximum_C[:, None]), out=weights_CW)
                sums_3R[0, chunk] += weights_CW.sum(dim=1)
                sums_3R[1, chunk] += logits_CW.mul_(weights_CW).sum(dim=1)
                maximum_R[chunk] = new_maximum_C
        _combine(maximum_R, sums_3R, shard.group)
        log_total_R = sums_3R[0].log()
        logsumexp_R = log_total_R + maximum_R
        logprobs_R = (sums_3R[2] - maximum_R) - log_total_R
        entropy_R = log_total_R - sums_3R[1] / sums_3R[0]
        ctx.save_for_backward(hidden_RH, weight_VH, labels_R, logsumexp_R, entropy_R)
        ctx.settings = (temperature, chunk_tokens, shard)
        return logprobs_R, entropy_R

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any,  # noqa: ANN401
        grad_logprobs_R: torch.Tensor,
        grad_entropy_R: torch.Tensor,
    ) -> tuple[Any, ...]:
        hidden_RH, weight_VH, labels_R, logsumexp_R, entropy_R = ctx.saved_tensors
        temperature, chunk_tokens, shard = ctx.settings
        tiles = _Tiles(hidden_RH, weight_VH, temperature, chunk_tokens, shard)
        grad_hidden_RH = torch.zeros_like(hidden_RH, dtype=torch.float32)
        # Chunks add up in fp32 whatever the weight's type.
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32)
        for chunk in tiles.chunks():
            grad_logprobs_C1 = grad_logprobs_R[chunk, None]
            for columns in tiles.columns():
                logits_CW, probs_CW = tiles.logits(chunk, columns)
                logprobs_CW = logits_CW.sub_(logsumexp_R[chunk, None])
                torch.exp(logprobs_CW, out=probs_CW)
                # d entropy / d logit = -p (log p + entropy); d logprob / d logit = onehot - p
                grad_CW = logprobs_CW.add_(entropy_R[chunk, None]).mul_(grad_entropy_R[chunk, None])
                grad_CW.add_(grad_logprobs_C1).mul_(probs_CW).neg_()
                inside_C, places_C1 = tiles.locate(labels_R[chunk], columns)
                grad_CW.scatter_add_(1, places_C1, torch.where(inside_C[:, None], grad_logprobs_C1, 0.0))
                if temperature != 1.0:
                    grad_CW.div_(temperature)
                grad_CW = tiles.to_weight_type(grad_CW)
                _add_product(grad_hidden_RH[chunk], grad_CW, weight_VH[columns])
                _add_product(grad_weight_VH[columns], grad_CW.T, hidden_RH[chunk])
        if not shard.hidden_is_gathered and shard.group.size() > 1:
            dist.all_reduce(grad_hidden_RH, group=shard.group)
        return grad_hidden_RH.to(hidden_RH.dtype), grad_weight_VH.to(weight_VH.dtype), None, None, None, None


def _slices(total: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, total)) for start in range(0, total, step)]


def _move_maximum(sums_3C: torch.Tensor, old_C: torch.Tensor, new_C: torch.Tensor) -> None:
    """Restate the softmax's sums, in place, against a new maximum; before the first tile they are 0."""
    # Where nothing was summed yet the old maximum is -inf, and any finite step will do.
    step_C = torch.where(old_C.isinf(), 0.0, old_C - new_C)
    factor_C = step_C.exp()
    sums_3C[1] = factor_C * (sums_3C[1] + step_C * sums_3C[0])
    sums_3C[0] *= factor_C


def _combine(maximum_R: torch.Tensor, sums_3R: torch.Tensor, group: dist.ProcessGroup) -> None:
    """The sums over all ranks' parts of the vocabulary, in place: two small collectives for all tokens."""
    if group.size() == 1:
        return
    local_R = maximum_R.clone()
    dist.all_reduce(maximum_R, op=dist.ReduceOp.MAX, group=group)
    _move_maximum(sums_3R, local_R, maximum_R)
    dist.all_reduce(sums_3R, group=group)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Total += left @ right, in place; total is float32, the factors may be narrower."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
