"""What is done to the logits of one tile, in plain torch; `logprob_kernels` does the same in one kernel each way.

Shape legend: C tokens of one tile, W vocabulary columns of one tile.
"""

from typing import Protocol

import torch


class TileMath(Protocol):
    """The part of log-probs and entropy that goes over every logit, and the buffers that it needs."""

    def product_room(self, num_tokens: int, num_columns: int) -> torch.Tensor:
        """Where a tile's hidden @ weight.T goes, [C, W]; the next tile's overwrites it."""
        ...

    def accumulate(
        self,
        product_CW: torch.Tensor,
        labels_C: torch.Tensor,
        first_column: int,
        maximum_C: torch.Tensor,
        sums_3C: torch.Tensor,
    ) -> None:
        """Take a tile into its tokens' running softmax, in place.

        Args:
            product_CW: what was written to `product_room`; its values are lost.
            labels_C: int64 vocabulary indices; those outside the tile leave the label's logit as it is.
            first_column: vocabulary index of column 0.
            maximum_C: float32, -inf before the first tile.
            sums_3C: float32, of exp(logit - maximum), exp(logit - maximum) * (logit - maximum), and the label's logit.
        """
        ...

    def gradient(
        self, product_CW: torch.Tensor, labels_C: torch.Tensor, first_column: int, per_token_4C: torch.Tensor
    ) -> torch.Tensor:
        """The loss's gradient with respect to the product, [C, W] in the weights' type.

        Args:
            product_CW: what was written to `product_room`; its values are lost.
            labels_C: int64 vocabulary indices; those outside the tile get no term of their own.
            first_column: vocabulary index of column 0.
            per_token_4C: float32: log-sum-exp over the vocabulary, entropy, the loss's gradient with respect to the
                log-prob, and with respect to the entropy.
        """
        ...


class TorchTileMath:
    """A pass over the tile an operation, in two float32 buffers, and one of the weights' type where that is narrower.

    Args:
        num_tokens: rows of the largest tile.
        num_columns: columns of the widest tile.
        like: a tensor of the weights' type and device.
        temperature: logits are divided by it.
    """

    def __init__(self, num_tokens: int, num_columns: int, like: torch.Tensor, temperature: float) -> None:
        size = num_tokens * num_columns
        self._temperature = temperature
        self._logits = like.new_empty(size, dtype=torch.float32)
        self._second = torch.empty_like(self._logits)
        self._rounded = None if like.dtype == torch.float32 else like.new_empty(size)

    def product_room(self, num_tokens: int, num_columns: int) -> torch.Tensor:
        """See `TileMath`."""
        room = self._logits if self._rounded is None else self._rounded
        return room[: num_tokens * num_columns].view(num_tokens, num_columns)

    def accumulate(
        self,
        product_CW: torch.Tensor,
        labels_C: torch.Tensor,
        first_column: int,
        maximum_C: torch.Tensor,
        sums_3C: torch.Tensor,
    ) -> None:
        """See `TileMath`."""
        logits_CW, weights_CW = self._logits_of(product_CW)
        inside_C, places_C1 = _locate(labels_C, first_column, logits_CW.shape[1])
        sums_3C[2] += torch.where(inside_C, logits_CW.gather(1, places_C1)[:, 0], 0.0)
        new_maximum_C = torch.maximum(maximum_C, logits_CW.amax(dim=1))
        move_maximum(sums_3C, maximum_C, new_maximum_C)
        torch.exp(logits_CW.sub_(new_maximum_C[:, None]), out=weights_CW)
        sums_3C[0] += weights_CW.sum(dim=1)
        sums_3C[1] += logits_CW.mul_(weights_CW).sum(dim=1)
        maximum_C.copy_(new_maximum_C)

    def gradient(
        self, product_CW: torch.Tensor, labels_C: torch.Tensor, first_column: int, per_token_4C: torch.Tensor
    ) -> torch.Tensor:
        """See `TileMath`."""
        logits_CW, probs_CW = self._logits_of(product_CW)
        logsumexp_C1, entropy_C1, grad_logprobs_C1, grad_entropy_C1 = per_token_4C[:, :, None]
        logprobs_CW = logits_CW.sub_(logsumexp_C1)
        torch.exp(logprobs_CW, out=probs_CW)
        # d entropy / d logit = -p (log p + entropy); d logprob / d logit = onehot - p
        grad_CW = logprobs_CW.add_(entropy_C1).mul_(grad_entropy_C1)
        grad_CW.add_(grad_logprobs_C1).mul_(probs_CW).neg_()
        inside_C, places_C1 = _locate(labels_C, first_column, grad_CW.shape[1])
        grad_CW.scatter_add_(1, places_C1, torch.where(inside_C[:, None], grad_logprobs_C1, 0.0))
        if self._temperature != 1.0:
            grad_CW.div_(self._temperature)
        return grad_CW if self._rounded is None else product_CW.copy_(grad_CW)

    def _logits_of(self, product_CW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 logits [C, W], and room of the same shape."""
        size, shape = product_CW.numel(), product_CW.shape
        logits_CW, second_CW = self._logits[:size].view(shape), self._second[:size].view(shape)
        if self._rounded is not None:
            logits_CW.copy_(product_CW)
        if self._temperature != 1.0:
            logits_CW.div_(self._temperature)
        return logits_CW, second_CW


def move_maximum(sums_3C: torch.Tensor, old_C: torch.Tensor, new_C: torch.Tensor) -> None:
    """Restate the softmax's sums, in place, against a new maximum; before the first tile they are 0."""
    # Where nothing was summed yet the old maximum is -inf, and any finite step will do.
    step_C = torch.where(old_C.isinf(), 0.0, old_C - new_C)
    factor_C = step_C.exp()
    sums_3C[1] = factor_C * (sums_3C[1] + step_C * sums_3C[0])
    sums_3C[0] *= factor_C


def _locate(labels_C: torch.Tensor, first_column: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether each label lies in the tile, and its column [C, 1] in the tile (any one where not)."""
    places_C = labels_C - first_column
    return (places_C >= 0) & (places_C < width), places_C.clamp(0, width - 1)[:, None]
