"""Per-logit operations on one tile of logits: their interface, and an implementation in plain torch.

`kernels` implements the same interface with one Triton kernel per direction.

Shape legend: C tokens of one tile, W vocabulary columns of one tile.
"""

from typing import Protocol

import torch


class TileMath(Protocol):
    """An implementation of the per-logit operations of log-probs and entropy, with the buffers that it needs."""

    def product_buffer(self, num_tokens: int, num_columns: int) -> torch.Tensor:
        """Return the output buffer for hidden @ weight.T of a tile, [C, W]; every tile reuses the same memory."""
        ...

    def accumulate(
        self,
        product_CW: torch.Tensor,
        labels_C: torch.Tensor,
        first_column: int,
        maximum_C: torch.Tensor,
        sums_3C: torch.Tensor,
    ) -> None:
        """Update the running softmax statistics of the tokens with a tile (online softmax), in place.

        Args:
            product_CW: The product in `product_buffer`. Its values are undefined after the call.
            labels_C: int64 vocabulary indices; a label outside the tile does not change its token's label logit.
            first_column: Vocabulary index of column 0.
            maximum_C: Running maximum logit, float32; -inf before the first tile.
            sums_3C: Running sums, float32, 0 before the first tile: exp(logit - maximum),
                exp(logit - maximum) * (logit - maximum), and the label's logit.
        """
        ...

    def gradient(
        self, product_CW: torch.Tensor, labels_C: torch.Tensor, first_column: int, per_token_4C: torch.Tensor
    ) -> torch.Tensor:
        """Return the gradient of the loss with respect to the product, [C, W] in the dtype of the weights.

        Args:
            product_CW: The product in `product_buffer`. Its values are undefined after the call.
            labels_C: int64 vocabulary indices; a label outside the tile adds no one-hot term.
            first_column: Vocabulary index of column 0.
            per_token_4C: float32 rows: log-sum-exp over the vocabulary, entropy, the gradient of the loss with respect
                to the log-prob, and the one with respect to the entropy.
        """
        ...


class TorchTileMath:
    """An implementation of `TileMath` with one torch operation per step, all of them in place.

    It holds two float32 buffers, and a third in the dtype of the weights when that is narrower than float32.

    Args:
        num_tokens: Maximum number of rows of a tile.
        num_columns: Maximum number of columns of a tile.
        like: A tensor with the dtype and device of the weights.
        temperature: Divisor of the logits.
    """

    def __init__(self, num_tokens: int, num_columns: int, like: torch.Tensor, temperature: float) -> None:
        size = num_tokens * num_columns
        self._temperature = temperature
        # The buffers are flat, so that a smaller tile is a contiguous view of their beginning.
        self._logits = like.new_empty(size, dtype=torch.float32)
        self._scratch = torch.empty_like(self._logits)
        self._narrow = None if like.dtype == torch.float32 else like.new_empty(size)

    def product_buffer(self, num_tokens: int, num_columns: int) -> torch.Tensor:
        """See `TileMath`."""
        buffer = self._logits if self._narrow is None else self._narrow
        return buffer[: num_tokens * num_columns].view(num_tokens, num_columns)

    def accumulate(
        self,
        product_CW: torch.Tensor,
        labels_C: torch.Tensor,
        first_column: int,
        maximum_C: torch.Tensor,
        sums_3C: torch.Tensor,
    ) -> None:
        """See `TileMath`."""
        logits_CW, weights_CW = self._scaled_logits(product_CW)
        inside_C, columns_C1 = _locate(labels_C, first_column, logits_CW.shape[1])
        sums_3C[2] += torch.where(inside_C, logits_CW.gather(1, columns_C1)[:, 0], 0.0)
        # The earlier sums are relative to the old maximum: they are rescaled before this tile's terms are added.
        new_maximum_C = torch.maximum(maximum_C, logits_CW.amax(dim=1))
        rescale_sums(sums_3C, maximum_C, new_maximum_C)
        torch.exp(logits_CW.sub_(new_maximum_C[:, None]), out=weights_CW)
        sums_3C[0] += weights_CW.sum(dim=1)
        sums_3C[1] += logits_CW.mul_(weights_CW).sum(dim=1)
        maximum_C.copy_(new_maximum_C)

    def gradient(
        self, product_CW: torch.Tensor, labels_C: torch.Tensor, first_column: int, per_token_4C: torch.Tensor
    ) -> torch.Tensor:
        """See `TileMath`."""
        logits_CW, probs_CW = self._scaled_logits(product_CW)
        logsumexp_C1, entropy_C1, grad_logprobs_C1, grad_entropy_C1 = per_token_4C[:, :, None]
        logprobs_CW = logits_CW.sub_(logsumexp_C1)
        torch.exp(logprobs_CW, out=probs_CW)
        # d entropy / d logit = -p (log p + entropy); d logprob / d logit = onehot - p
        grad_CW = logprobs_CW.add_(entropy_C1).mul_(grad_entropy_C1)
        grad_CW.add_(grad_logprobs_C1).mul_(probs_CW).neg_()
        # The one-hot term of the label. Rows whose label is in another tile add 0 to an arbitrary column.
        inside_C, columns_C1 = _locate(labels_C, first_column, grad_CW.shape[1])
        grad_CW.scatter_add_(1, columns_C1, torch.where(inside_C[:, None], grad_logprobs_C1, 0.0))
        if self._temperature != 1.0:
            grad_CW.div_(self._temperature)
        return grad_CW if self._narrow is None else product_CW.copy_(grad_CW)

    def _scaled_logits(self, product_CW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the float32 logits divided by the temperature, [C, W], and a scratch buffer of the same shape."""
        size, shape = product_CW.numel(), product_CW.shape
        # With float32 weights the product is in `_logits` already.
        logits_CW, scratch_CW = self._logits[:size].view(shape), self._scratch[:size].view(shape)
        if self._narrow is not None:
            logits_CW.copy_(product_CW)
        if self._temperature != 1.0:
            logits_CW.div_(self._temperature)
        return logits_CW, scratch_CW


def rescale_sums(sums_3C: torch.Tensor, old_C: torch.Tensor, new_C: torch.Tensor) -> None:
    """Rescale the softmax sums from an old to a new maximum, in place (the correction of the online softmax).

    With d = old - new, sum(exp(x - new)) = e^d sum(exp(x - old)), and sum(exp(x - new) (x - new)) is
    e^d (sum(exp(x - old) (x - old)) + d sum(exp(x - old))). The row of label logits does not depend on the maximum.
    """
    # Before the first tile the maximum is -inf and the sums are 0: any finite step avoids a NaN and leaves them 0.
    step_C = torch.where(old_C.isinf(), 0.0, old_C - new_C)
    factor_C = step_C.exp()
    # The weighted sum goes first, because it needs the plain sum that is still relative to the old maximum.
    sums_3C[1] = factor_C * (sums_3C[1] + step_C * sums_3C[0])
    sums_3C[0] *= factor_C


def _locate(labels_C: torch.Tensor, first_column: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return whether each label is in the tile [C], and its column in the tile, clamped to a valid one [C, 1]."""
    columns_C = labels_C - first_column
    return (columns_C >= 0) & (columns_C < width), columns_C.clamp(0, width - 1)[:, None]
