"""Context parallelism over packed sequences: the split of tokens over ranks, and the gather of keys and values.

Every sequence is cut into 2 * C equal chunks for C context ranks; rank r holds chunks r and 2C - 1 - r, in this
order, so that causal attention has the same cost on every rank (zig-zag layout). Megatron's rotary embedding and
Transformer Engine use the same layout.

Shape legend: S packed tokens of the whole microbatch, L = S / C tokens on one rank, K key-value heads, D head size.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist


def local_tokens(bounds: Sequence[int], context_size: int, context_rank: int) -> torch.Tensor:
    """Return the positions in S of a rank's tokens, in the order in which the rank holds them: int64 [L].

    `bounds` are the cumulative sequence lengths; each length must be a multiple of 2 * context_size.
    """
    parts = []
    for start, stop in pairwise(bounds):
        chunk, rest = divmod(stop - start, 2 * context_size)
        assert rest == 0, f"a sequence of {stop - start} tokens cannot be cut into {2 * context_size} chunks"
        for index in (context_rank, 2 * context_size - 1 - context_rank):
            parts.append(torch.arange(start + index * chunk, start + (index + 1) * chunk))
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


class _GatherContext(torch.autograd.Function):
    """All-gather along tokens; the backward pass sums every rank's gradient for this rank's tokens."""

    @staticmethod
    def forward(ctx: Any, local_LKD: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:  # type: ignore[override]  # noqa: ANN401
        ctx.group = group
        parts = [torch.empty_like(local_LKD) for _ in range(group.size())]
        dist.all_gather(parts, local_LKD.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad_SKD: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]  # noqa: ANN401
        # An all-reduce and a slice instead of a reduce-scatter, which gloo does not support for all tensors.
        grad_SKD = grad_SKD.contiguous()
        dist.all_reduce(grad_SKD, group=ctx.group)
        return grad_SKD.chunk(ctx.group.size())[ctx.group.rank()], None


def gather_context(local_LKD: torch.Tensor, bounds: Sequence[int], group: dist.ProcessGroup) -> torch.Tensor:
    """All-gather tokens into the order of the whole microbatch, differentiably: [L, ...] -> [S, ...]."""
    size = group.size()
    order_S = torch.cat([local_tokens(bounds, size, rank) for rank in range(size)]).to(local_LKD.device)
    # The gather concatenates by rank; the inverse permutation restores the order of the microbatch.
    return _GatherContext.apply(local_LKD, group)[order_S.argsort()]  # type: ignore[index]


class _SumContext(torch.autograd.Function):
    """An all-reduce with an identity backward pass, for a loss of the sum that every rank computes identically."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:  # type: ignore[override]  # noqa: ANN401
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]  # noqa: ANN401
        return grad, None


def sum_context(values: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Sum tensors over context ranks, each of which fills its own tokens and has 0 elsewhere.

    The backward pass is the identity: each rank differentiates the whole loss with respect to its own tokens, and the
    sum of the parameter gradients over context ranks is the whole gradient.
    """
    return values if group.size() == 1 else _SumContext.apply(values, group)  # type: ignore[return-value]
