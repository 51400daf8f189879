"""Log-probs and entropy of a vocabulary-parallel output layer, without materializing the logits.

The output layer, the softmax and the gather of the labels are one autograd function that iterates over tiles of tokens
x vocabulary. At any time two tiles of logits exist (one with the Triton kernels), for any number of tokens and any
vocabulary. The maximum and the sums of the softmax are rescaled from tile to tile (online softmax, Milakov and
Gimelshein, arXiv 1805.02867), and the backward pass recomputes the logits. Fused losses that compute the gradient in
the forward pass avoid this recomputation, but they need the weight of each token in the loss beforehand, and the weight
of a clipped ratio depends on the log-prob itself. The per-logit operations are in `tiles`, and in `kernels` for Triton.

Shape legend: R response tokens scored by one forward pass, C tokens of one chunk, H hidden size, V local vocabulary,
W vocabulary columns of one tile.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
import torch.distributed as dist

from megatron_prime.logprobs.tiles import TileMath, TorchTileMath, rescale_sums

LogprobKernel = Literal["auto", "torch", "triton"]

TILE_ELEMENTS = {"cpu": 2**18, "cuda": 2**24}
"""Logits per tile: few enough to fit the cache of a CPU core, or enough to hide the launch overhead of GPU kernels."""
MIN_COLUMNS = 256
"""Minimum width of a tile; the matrix product is inefficient for narrower ones."""
_ADDMM_HAS_OUT_DTYPE = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 10)
"""True from torch 2.10 on, where torch.addmm on a GPU accumulates a product of bf16 factors into a float32 matrix."""


@dataclass(frozen=True)
class VocabShard:
    """The rows of the output layer that one tensor-parallel rank holds."""

    group: dist.ProcessGroup
    first_row: int
    """Vocabulary index of local row 0."""
    num_rows: int
    """Number of local rows that are real tokens. Rows that pad the vocabulary follow them and are never read."""
    hidden_is_gathered: bool
    """True under sequence parallelism: the backward of the gather before the output layer then reduces the gradients of
    the hidden states over ranks."""


def output_logprobs(
    hidden_RH: torch.Tensor,
    weight_VH: torch.Tensor,
    labels_R: torch.Tensor,
    shard: VocabShard,
    temperature: float = 1.0,
    chunk_tokens: int = 1024,
    kernel: LogprobKernel = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probabilities of labels and the entropy under a vocabulary-parallel output layer.

    Collective over `shard.group`, forward and backward.

    Args:
        hidden_RH: Final hidden states, equal on all ranks of `shard.group`.
        weight_VH: The local rows of the output layer.
        labels_R: int64 vocabulary indices.
        shard: The position of the local rows in the vocabulary.
        temperature: Divisor of the logits.
        chunk_tokens: Maximum number of tokens per tile. It has little effect on speed.
        kernel: The implementation of the per-logit operations, see `select_kernel`. Results differ by rounding only.

    Returns:
        `(logprobs_R, entropy_R)`: float32, in nats, equal on all ranks of the group, both differentiable. The entropy
        of a token with a non-finite logit is NaN.
    """
    if kernel == "auto":
        kernel = select_kernel(kernel, hidden_RH.is_cuda)
    settings = _Settings(temperature, chunk_tokens, shard, kernel)
    return _OutputLogprobs.apply(hidden_RH, weight_VH, labels_R.contiguous(), settings)  # type: ignore[return-value]


def select_kernel(wanted: LogprobKernel, is_cuda: bool) -> Literal["torch", "triton"]:
    """Return the implementation of the per-logit operations: plain torch, or one Triton kernel per direction.

    `auto` selects triton on a GPU if it is installed (CUDA builds of torch for Linux include it), and torch otherwise.

    Raises:
        ValueError: Triton is requested and cannot run.
    """
    if wanted == "torch" or (wanted == "auto" and not (is_cuda and _has_triton())):
        return "torch"
    if not is_cuda:
        raise ValueError(
            "trainer.logprob_kernel = 'triton', but this run is on CPUs: use 'auto' or 'torch', or "
            "platform.device = 'cuda'"
        )
    if not _has_triton():
        raise ValueError(
            "trainer.logprob_kernel = 'triton', but triton is not installed: pip install triton, or use 'auto'"
        )
    return "triton"


class _Tiles:
    """The tiles of one forward or backward pass, and the implementation of their per-logit operations.

    Args:
        hidden_RH: Final hidden states.
        weight_VH: The local rows of the output layer.
        settings: Settings of the pass.
    """

    def __init__(self, hidden_RH: torch.Tensor, weight_VH: torch.Tensor, settings: "_Settings") -> None:
        self._hidden_RH, self._weight_VH = hidden_RH, weight_VH
        self._shard = settings.shard
        self._num_tokens = max(1, min(settings.chunk_tokens, len(hidden_RH)))
        # Fewer tokens make wider tiles, so that a tile has about TILE_ELEMENTS logits whatever the batch.
        elements = TILE_ELEMENTS[hidden_RH.device.type]
        self._num_columns = max(1, min(self._shard.num_rows, max(MIN_COLUMNS, elements // self._num_tokens)))
        self.math: TileMath = _tile_math(settings.kernel)(
            self._num_tokens, self._num_columns, hidden_RH, settings.temperature
        )

    def chunks(self) -> list[slice]:
        """Return the slices of tokens, one per row of tiles."""
        return _slices(len(self._hidden_RH), self._num_tokens)

    def columns(self) -> list[slice]:
        """Return the slices of local vocabulary rows, one per column of tiles."""
        return _slices(self._shard.num_rows, self._num_columns)

    def product(self, chunk: slice, columns: slice) -> tuple[torch.Tensor, int]:
        """Return hidden @ weight.T of a tile, [C, W], and the vocabulary index of its column 0.

        The product is valid until the next call, which overwrites it.
        """
        product_CW = self.math.product_buffer(chunk.stop - chunk.start, columns.stop - columns.start)
        torch.mm(self._hidden_RH[chunk], self._weight_VH[columns].T, out=product_CW)
        return product_CW, self._shard.first_row + columns.start


@dataclass(frozen=True)
class _Settings:
    temperature: float
    chunk_tokens: int
    shard: VocabShard
    kernel: Literal["torch", "triton"]


class _OutputLogprobs(torch.autograd.Function):
    """The log-softmax of hidden @ weight.T / temperature at the labels, and the entropy of the softmax."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,  # noqa: ANN401
        hidden_RH: torch.Tensor,
        weight_VH: torch.Tensor,
        labels_R: torch.Tensor,
        settings: _Settings,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tiles = _Tiles(hidden_RH, weight_VH, settings)
        maximum_R = hidden_RH.new_full((len(labels_R),), -torch.inf, dtype=torch.float32)
        # Rows: sum of exp(logit - maximum), sum of exp(logit - maximum) * (logit - maximum), and the label's logit.
        sums_3R = maximum_R.new_zeros(3, len(labels_R))
        for chunk in tiles.chunks():
            for columns in tiles.columns():
                product_CW, first_column = tiles.product(chunk, columns)
                tiles.math.accumulate(
                    product_CW, labels_R[chunk], first_column, maximum_R[chunk], sums_3R[:, chunk]
                )
        _combine(maximum_R, sums_3R, settings.shard.group)
        log_total_R = sums_3R[0].log()
        logsumexp_R = log_total_R + maximum_R
        # The two large terms are subtracted first: adding them to the small log-total would lose its last bits.
        logprobs_R = (sums_3R[2] - maximum_R) - log_total_R
        entropy_R = log_total_R - sums_3R[1] / sums_3R[0]
        ctx.save_for_backward(hidden_RH, weight_VH, labels_R, logsumexp_R, entropy_R)
        ctx.settings = settings
        return logprobs_R, entropy_R

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any,  # noqa: ANN401
        grad_logprobs_R: torch.Tensor,
        grad_entropy_R: torch.Tensor,
    ) -> tuple[Any, ...]:
        hidden_RH, weight_VH, labels_R, logsumexp_R, entropy_R = ctx.saved_tensors
        tiles, shard = _Tiles(hidden_RH, weight_VH, ctx.settings), ctx.settings.shard
        per_token_4R = torch.stack([logsumexp_R, entropy_R, grad_logprobs_R, grad_entropy_R])
        grad_hidden_RH = torch.zeros_like(hidden_RH, dtype=torch.float32)
        # The gradients of many chunks are summed, so they are accumulated in fp32 whatever the dtype of the weights.
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32)
        for chunk in tiles.chunks():
            for columns in tiles.columns():
                product_CW, first_column = tiles.product(chunk, columns)
                grad_CW = tiles.math.gradient(
                    product_CW, labels_R[chunk], first_column, per_token_4R[:, chunk]
                )
                _add_product(grad_hidden_RH[chunk], grad_CW, weight_VH[columns])
                _add_product(grad_weight_VH[columns], grad_CW.T, hidden_RH[chunk])
        # Each rank has the contribution of its part of the vocabulary only.
        if not shard.hidden_is_gathered and shard.group.size() > 1:
            dist.all_reduce(grad_hidden_RH, group=shard.group)
        return grad_hidden_RH.to(hidden_RH.dtype), grad_weight_VH.to(weight_VH.dtype), None, None


@cache
def _has_triton() -> bool:
    """Return whether triton is installed; cached, because the lookup searches the file system."""
    return importlib.util.find_spec("triton") is not None


def _tile_math(kernel: Literal["torch", "triton"]) -> Callable[[int, int, torch.Tensor, float], TileMath]:
    if kernel == "torch":
        return TorchTileMath
    # Imported on demand, because a machine without a GPU need not have triton installed.
    from megatron_prime.logprobs.kernels import TritonTileMath

    return TritonTileMath


def _slices(total: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, total)) for start in range(0, total, step)]


def _combine(maximum_R: torch.Tensor, sums_3R: torch.Tensor, group: dist.ProcessGroup) -> None:
    """Combine the softmax statistics of all ranks' vocabulary shards in place, with two collectives for all tokens."""
    if group.size() == 1:
        return
    # Local sums are relative to the local maximum, so they are rescaled to the global one before they are added. A rank
    # with padding rows only has a maximum of -inf and sums of 0, which `rescale_sums` keeps.
    local_R = maximum_R.clone()
    dist.all_reduce(maximum_R, op=dist.ReduceOp.MAX, group=group)
    rescale_sums(sums_3R, local_R, maximum_R)
    dist.all_reduce(sums_3R, group=group)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add left @ right to `total` in place; `total` is float32, the factors may be narrower."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.is_cuda and _ADDMM_HAS_OUT_DTYPE:
        # The product is accumulated in float32 directly. The fallback below rounds it to the dtype of its factors, and
        # writes and reads it once more.
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total += left @ right
