"""Log-probs and entropy of an output layer that is split over the vocabulary, without its logits.

The output layer, the softmax and the choice of the label are one function that walks tiles of tokens x vocabulary. Two
tiles (one, with the Triton kernels) are all that exists of the logits, forward and backward, whatever the number of
tokens and the vocabulary. The softmax's maximum and sums are corrected from tile to tile (Milakov and Gimelshein, arXiv
1805.02867); the backward pass computes the logits again. Kernels that take the gradient in the forward pass instead
save that product, but must know each token's weight in the loss beforehand; a clipped ratio's depends on the log-prob
itself. What is done to each logit of a tile is in `logprob_tiles`, and as Triton kernels in `logprob_kernels`.

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

from megatron_prime.logprobs.tiles import TileMath, TorchTileMath, move_maximum

LogprobKernel = Literal["auto", "torch", "triton"]

TILE_ELEMENTS = {"cpu": 2**18, "cuda": 2**24}
"""Logits of one tile: small enough for a core's cache, or large enough to hide the launch of a kernel."""
FEWEST_COLUMNS = 256
"""Narrower tiles would waste the matrix product."""
_ADDS_WIDER = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 10)
"""Since then torch.addmm adds a product of bf16 factors to a float32 matrix in place, on a GPU."""


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
    kernel: LogprobKernel = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of labels under an output layer that is split over the vocabulary, and the entropy.

    Args:
        hidden_RH: final hidden states, the same on every rank of `shard.group`.
        weight_VH: this rank's rows of the output layer.
        labels_R: int64 vocabulary indices.
        shard: which rows these are.
        temperature: logits are divided by it.
        chunk_tokens: tokens of one tile, at most; time hardly changes.
        kernel: who does what is done to each logit, see `select_kernel`; the results differ by rounding alone.

    Returns:
        `(logprobs_R, entropy_R)`, float32, nats, the same on every rank of the group; both differentiable. A logit that
        is not finite makes its token's entropy NaN.
    """
    if kernel == "auto":
        kernel = select_kernel(kernel, hidden_RH.is_cuda)
    settings = _Settings(temperature, chunk_tokens, shard, kernel)
    return _OutputLogprobs.apply(hidden_RH, weight_VH, labels_R.contiguous(), settings)  # type: ignore[return-value]


def select_kernel(wanted: LogprobKernel, is_cuda: bool) -> Literal["torch", "triton"]:
    """Who does what is done to each logit: plain torch, or one Triton kernel each way.

    `auto` is triton on a GPU where it can be imported (a CUDA build of torch brings it on Linux), torch otherwise.
    Raises ValueError when triton is asked for and cannot run.
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
    """The tiles of one pass, and who does their elementwise part.

    Args:
        hidden_RH: final hidden states.
        weight_VH: the output layer's local rows.
        settings: of the pass.
    """

    def __init__(self, hidden_RH: torch.Tensor, weight_VH: torch.Tensor, settings: "_Settings") -> None:
        self._hidden_RH, self._weight_VH = hidden_RH, weight_VH
        self._shard = settings.shard
        self._num_tokens = max(1, min(settings.chunk_tokens, len(hidden_RH)))
        elements = TILE_ELEMENTS[hidden_RH.device.type]
        self._num_columns = max(
            1, min(self._shard.num_rows, max(FEWEST_COLUMNS, elements // self._num_tokens))
        )
        self.math: TileMath = _tile_math(settings.kernel)(
            self._num_tokens, self._num_columns, hidden_RH, settings.temperature
        )

    def chunks(self) -> list[slice]:
        """Tokens of each row of tiles."""
        return _slices(len(self._hidden_RH), self._num_tokens)

    def columns(self) -> list[slice]:
        """Local vocabulary of each column of tiles."""
        return _slices(self._shard.num_rows, self._num_columns)

    def product(self, chunk: slice, columns: slice) -> tuple[torch.Tensor, int]:
        """Hidden @ weight.T of a tile, [C, W], until the next tile's; and the vocabulary index of its column 0."""
        product_CW = self.math.product_room(chunk.stop - chunk.start, columns.stop - columns.start)
        torch.mm(self._hidden_RH[chunk], self._weight_VH[columns].T, out=product_CW)
        return product_CW, self._shard.first_row + columns.start


@dataclass(frozen=True)
class _Settings:
    temperature: float
    chunk_tokens: int
    shard: VocabShard
    kernel: Literal["torch", "triton"]


class _OutputLogprobs(torch.autograd.Function):
    """log-softmax(hidden @ weight.T / temperature) at the labels, and its entropy."""

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
        # Rows: sum of exp(logit - maximum), sum of exp(logit - maximum) * (logit - maximum), the label's logit
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
        # Chunks add up in fp32 whatever the weight's type.
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32)
        for chunk in tiles.chunks():
            for columns in tiles.columns():
                product_CW, first_column = tiles.product(chunk, columns)
                grad_CW = tiles.math.gradient(
                    product_CW, labels_R[chunk], first_column, per_token_4R[:, chunk]
                )
                _add_product(grad_hidden_RH[chunk], grad_CW, weight_VH[columns])
                _add_product(grad_weight_VH[columns], grad_CW.T, hidden_RH[chunk])
        if not shard.hidden_is_gathered and shard.group.size() > 1:
            dist.all_reduce(grad_hidden_RH, group=shard.group)
        return grad_hidden_RH.to(hidden_RH.dtype), grad_weight_VH.to(weight_VH.dtype), None, None


@cache
def _has_triton() -> bool:
    """Whether the kernels can be imported; looked up once, and only where they may be used."""
    return importlib.util.find_spec("triton") is not None


def _tile_math(kernel: Literal["torch", "triton"]) -> Callable[[int, int, torch.Tensor, float], TileMath]:
    if kernel == "torch":
        return TorchTileMath
    # Only here: a machine without a GPU need not have triton.
    from megatron_prime.logprobs.kernels import TritonTileMath

    return TritonTileMath


def _slices(total: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, total)) for start in range(0, total, step)]


def _combine(maximum_R: torch.Tensor, sums_3R: torch.Tensor, group: dist.ProcessGroup) -> None:
    """The sums over all ranks' parts of the vocabulary, in place: two small collectives for all tokens."""
    if group.size() == 1:
        return
    local_R = maximum_R.clone()
    dist.all_reduce(maximum_R, op=dist.ReduceOp.MAX, group=group)
    move_maximum(sums_3R, local_R, maximum_R)
    dist.all_reduce(sums_3R, group=group)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Total += left @ right, in place; total is float32, the factors may be narrower."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.is_cuda and _ADDS_WIDER:
        # One product that is added as float32: the narrower one would be rounded, written and read.
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total += left @ right
