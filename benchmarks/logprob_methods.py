"""The methods that `logprob_kernel` compares: from a tile's logits, or through a whole output layer."""

import importlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle

import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

from megatron_prime.logprobs.output_layer import VocabShard, output_logprobs
from megatron_prime.logprobs.tiles import TorchTileMath

CHUNK_TOKENS = 1024
Scores = tuple[torch.Tensor, torch.Tensor | None]
"""Log-probs per token (or only their sum, if a kernel returns no more), and entropies if the method computes them."""
OfLogits = Callable[[torch.Tensor, torch.Tensor], Scores]
OfLayer = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Scores]


class CannotRunError(Exception):
    """A method cannot run because this machine lacks something."""


@dataclass(frozen=True)
class Calls:
    """The calls of one method, ready to be timed."""

    forward: Callable[[], Scores]
    """The first call sees the original inputs; its scores are compared to float64."""
    both: Callable[[], None]
    """Forward and backward pass together."""
    backward: Callable[[], None] | None = None
    """The backward pass alone, if it can be separated."""


@dataclass(frozen=True)
class TileInputs:
    """Logits of several tiles; calls rotate over them, so that no tile is in a cache."""

    logits: list[torch.Tensor]
    labels_C: torch.Tensor
    upstream_2C: torch.Tensor


@dataclass(frozen=True)
class LayerInputs:
    """Inputs of an output layer, and the upstream gradients of log-probs and entropies."""

    hidden_RH: torch.Tensor
    weight_VH: torch.Tensor
    labels_R: torch.Tensor
    upstream_2R: torch.Tensor


def naive(logits_CW: torch.Tensor, labels_C: torch.Tensor) -> Scores:
    """Compute log_softmax, gather and entropy in float32, with autograd."""
    full_CW = torch.log_softmax(logits_CW.float(), dim=1)
    return full_CW.gather(1, labels_C[:, None])[:, 0], -(full_CW.exp() * full_CW).sum(dim=1)


def compiled() -> OfLogits:
    """Return `naive` compiled by torch.compile."""
    if os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        raise CannotRunError("TORCHDYNAMO_DISABLE is set")
    if not shutil.which("g++") and not torch.cuda.is_available():
        raise CannotRunError("no C++ compiler")
    return torch.compile(naive, dynamic=False)


def megatron() -> OfLogits:
    """Return Megatron-core's fused cross-entropy, which has no entropy and computes gradients in bf16."""
    from megatron.core.fusions.fused_cross_entropy import fused_vocab_parallel_cross_entropy

    def score(logits_CW: torch.Tensor, labels_C: torch.Tensor) -> Scores:
        return -fused_vocab_parallel_cross_entropy(logits_CW[:, None], labels_C[:, None], dist.group.WORLD)[
            :, 0
        ], None

    return score


def liger() -> OfLogits:
    """Return Liger's cross-entropy, which has no entropy and computes gradients in the forward pass."""
    functional = _library("liger_kernel.transformers.functional")
    return lambda logits_CW, labels_C: (
        -functional.liger_cross_entropy(logits_CW, labels_C, reduction="none"),
        None,
    )


def flash_attention() -> OfLogits:
    """Return flash-attn's cross-entropy, which has no entropy."""
    library = _library("flash_attn.ops.triton.cross_entropy")
    return lambda logits_CW, labels_C: (-library.cross_entropy_loss(logits_CW, labels_C)[0], None)


def _library(name: str):
    if not torch.cuda.is_available():
        raise CannotRunError("its kernels need a GPU")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise CannotRunError(f"not installed ({error})") from error


OF_LOGITS: dict[str, Callable[[], OfLogits]] = {
    "naive": lambda: naive,
    "torch.compile": compiled,
    "megatron-core fused, no entropy": megatron,
    "liger-kernel, no entropy": liger,
    "flash-attn, no entropy": flash_attention,
}


def tile_methods(inputs: TileInputs) -> Iterator[tuple[str, Callable[[], Calls]]]:
    """Yield the name and the builder of every method that starts from a tile's logits."""
    yield "ours, triton", partial(_our_tile, "triton", inputs)
    yield "ours, torch", partial(_our_tile, "torch", inputs)
    for name, build in OF_LOGITS.items():
        yield name, partial(_by_autograd_on_tiles, build, inputs)


def _our_tile(kernel: str, inputs: TileInputs) -> Calls:
    if kernel == "triton":
        _library("triton")
        from megatron_prime.logprobs.kernels import TritonTileMath as TileMath
    else:
        TileMath = TorchTileMath
    shape, labels_C = inputs.logits[0].shape, inputs.labels_C
    works = [TileMath(*shape, logits_CW, 1.0) for logits_CW in inputs.logits]
    products = [
        work.product_buffer(*shape).copy_(logits_CW)
        for work, logits_CW in zip(works, inputs.logits, strict=True)
    ]
    turns = cycle(zip(works, products, strict=True))
    maximum_C = torch.full((shape[0],), -torch.inf, device=labels_C.device)
    sums_3C = torch.zeros(3, shape[0], device=labels_C.device)
    per_token_4C = torch.zeros(4, shape[0], device=labels_C.device)

    def forward() -> Scores:
        work, product_CW = next(turns)
        work.accumulate(product_CW, labels_C, 0, maximum_C, sums_3C)
        return (sums_3C[2] - maximum_C) - sums_3C[0].log(), sums_3C[0].log() - sums_3C[1] / sums_3C[0]

    def accumulate() -> None:
        work, product_CW = next(turns)
        work.accumulate(product_CW, labels_C, 0, maximum_C, sums_3C)

    def backward() -> None:
        work, product_CW = next(turns)
        work.gradient(product_CW, labels_C, 0, per_token_4C)

    def both() -> None:
        accumulate()
        backward()

    first = forward()
    per_token_4C.copy_(torch.stack([sums_3C[0].log() + maximum_C, first[1], *inputs.upstream_2C]))
    return Calls(_first_then(first, accumulate), both, backward)


def _first_then(first: Scores, again: Callable[[], None]) -> Callable[[], Scores]:
    """Return a forward call that always returns the first scores: later calls are only timed, on running sums."""

    def forward() -> Scores:
        again()
        return first

    return forward


def _by_autograd_on_tiles(build: Callable[[], OfLogits], inputs: TileInputs) -> Calls:
    score, turns = build(), cycle(inputs.logits)

    def forward() -> Scores:
        with torch.no_grad():
            return score(next(turns), inputs.labels_C)

    def both() -> None:
        leaf_CW = next(turns).detach().requires_grad_()
        torch.autograd.grad(_loss(score(leaf_CW, inputs.labels_C), inputs.upstream_2C), leaf_CW)

    return Calls(forward, both)


def _loss(scores: Scores, upstream_2R: torch.Tensor) -> torch.Tensor:
    logprobs_R, entropy_R = scores
    loss = logprobs_R if logprobs_R.dim() == 0 else (upstream_2R[0] * logprobs_R).sum()
    return loss if entropy_R is None else loss + (upstream_2R[1] * entropy_R).sum()


def layer_methods(inputs: LayerInputs) -> Iterator[tuple[str, Callable[[], Calls]]]:
    """Yield the name and the builder of every method that computes a whole output layer."""
    yield "ours, triton", partial(_by_autograd_on_layer, partial(_our_layer, "triton"), inputs)
    yield "ours, torch", partial(_by_autograd_on_layer, partial(_our_layer, "torch"), inputs)
    for name, build in OF_LOGITS.items():
        yield name, partial(_by_autograd_on_layer, partial(_on_whole_logits, build), inputs)
    yield "torch.compile, chunks recomputed", partial(_by_autograd_on_layer, _recomputed_chunks, inputs)
    yield "liger-kernel fused linear, no entropy", partial(_by_autograd_on_layer, _liger_layer, inputs)
    yield "cut-cross-entropy, no entropy", partial(_by_autograd_on_layer, _cut_layer, inputs)


def _our_layer(kernel: str) -> OfLayer:
    if kernel == "triton":
        _library("triton")

    def score(hidden_RH: torch.Tensor, weight_VH: torch.Tensor, labels_R: torch.Tensor) -> Scores:
        shard = VocabShard(dist.group.WORLD, 0, len(weight_VH), hidden_is_gathered=False)
        return output_logprobs(hidden_RH, weight_VH, labels_R, shard, 1.0, CHUNK_TOKENS, kernel)

    return score


def _on_whole_logits(build: Callable[[], OfLogits]) -> OfLayer:
    score = build()
    return lambda hidden_RH, weight_VH, labels_R: score(hidden_RH @ weight_VH.T, labels_R)


def _recomputed_chunks() -> OfLayer:
    score = compiled()

    def chunk(hidden_CH: torch.Tensor, weight_VH: torch.Tensor, labels_C: torch.Tensor) -> Scores:
        return score(hidden_CH @ weight_VH.T, labels_C)

    def whole(hidden_RH: torch.Tensor, weight_VH: torch.Tensor, labels_R: torch.Tensor) -> Scores:
        parts = [
            checkpoint(chunk, hidden_CH, weight_VH, labels_C, use_reentrant=False)
            for hidden_CH, labels_C in zip(
                hidden_RH.split(CHUNK_TOKENS), labels_R.split(CHUNK_TOKENS), strict=True
            )
        ]
        logprobs, entropies = zip(*parts, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    return whole


def _liger_layer() -> OfLayer:
    """Return Liger's fused layer; it computes gradients in the forward pass, so it returns an unweighted sum."""
    functional = _library("liger_kernel.transformers.functional")
    return lambda hidden_RH, weight_VH, labels_R: (
        -functional.liger_fused_linear_cross_entropy(hidden_RH, weight_VH, labels_R, reduction="sum"),
        None,
    )


def _cut_layer() -> OfLayer:
    library = _library("cut_cross_entropy")
    return lambda hidden_RH, weight_VH, labels_R: (
        -library.linear_cross_entropy(hidden_RH, weight_VH, labels_R, reduction="none"),
        None,
    )


def _by_autograd_on_layer(build: Callable[[], OfLayer], inputs: LayerInputs) -> Calls:
    score = build()
    hidden_RH, weight_VH = (
        tensor.detach().requires_grad_() for tensor in (inputs.hidden_RH, inputs.weight_VH)
    )

    def forward() -> Scores:
        with torch.no_grad():
            return score(hidden_RH, weight_VH, inputs.labels_R)

    def both() -> None:
        loss = _loss(score(hidden_RH, weight_VH, inputs.labels_R), inputs.upstream_2R)
        torch.autograd.grad(loss, [hidden_RH, weight_VH])

    return Calls(forward, both)
