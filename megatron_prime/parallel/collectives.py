"""What crosses ranks: log-probs over a split vocabulary, and the sharing of results.

Shape legend: R response tokens scored by one forward pass, C tokens of one chunk, H hidden size, V local vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from megatron_prime.observability.heartbeat import beat
from megatron_prime.parallel.topology import Topology

Item = TypeVar("Item")


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


class _OutputLogprobs(torch.autograd.Function):
    """log-softmax(hidden @ weight.T / temperature) at the labels, and its entropy, a chunk of tokens at a time.

    Only one chunk's logits exist at any moment; the backward pass computes them again.
    """

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
        logprobs_R = hidden_RH.new_empty(len(labels_R), dtype=torch.float32)
        entropy_R = torch.empty_like(logprobs_R)
        logsumexp_R = torch.empty_like(logprobs_R)
        for chunk in _chunks(len(labels_R), chunk_tokens):
            logits_CV = _logits(hidden_RH[chunk], weight_VH, temperature, shard)
            maximum_C = (
                logits_CV.amax(dim=1) if shard.num_rows else logits_CV.new_full((len(logits_CV),), -torch.inf)
            )
            dist.all_reduce(maximum_C, op=dist.ReduceOp.MAX, group=shard.group)
            shifted_CV = logits_CV - maximum_C[:, None]
            weights_CV = shifted_CV.exp()
            local_C, columns_C = _locate(labels_R[chunk], shard)
            target_C = torch.zeros_like(maximum_C)
            target_C[local_C] = shifted_CV[local_C, columns_C]
            sums_3C = torch.stack([weights_CV.sum(dim=1), (weights_CV * shifted_CV).sum(dim=1), target_C])
            dist.all_reduce(sums_3C, group=shard.group)
            log_total_C = sums_3C[0].log()
            logprobs_R[chunk] = sums_3C[2] - log_total_C
            entropy_R[chunk] = log_total_C - sums_3C[1] / sums_3C[0]
            logsumexp_R[chunk] = log_total_C + maximum_C
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
        grad_hidden_RH = torch.zeros_like(hidden_RH)
        # Chunks add up in fp32 whatever the weight's type.
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32)
        for chunk in _chunks(len(labels_R), chunk_tokens):
            logits_CV = _logits(hidden_RH[chunk], weight_VH, temperature, shard)
            logprobs_CV = logits_CV - logsumexp_R[chunk, None]
            probs_CV = logprobs_CV.exp()
            # d entropy / d logit = -p (log p + entropy); d logprob / d logit = onehot - p
            grad_CV = -probs_CV * (
                grad_logprobs_R[chunk, None]
                + grad_entropy_R[chunk, None] * (logprobs_CV + entropy_R[chunk, None])
            )
            local_C, columns_C = _locate(labels_R[chunk], shard)
            grad_CV[local_C, columns_C] += grad_logprobs_R[chunk][local_C]
            grad_CV = (grad_CV / temperature).to(weight_VH.dtype)
            grad_hidden_RH[chunk] = grad_CV @ weight_VH[: shard.num_rows]
            grad_weight_VH[: shard.num_rows] += grad_CV.T @ hidden_RH[chunk]
        if not shard.hidden_is_gathered:
            dist.all_reduce(grad_hidden_RH, group=shard.group)
        return grad_hidden_RH, grad_weight_VH.to(weight_VH.dtype), None, None, None, None


def _chunks(num_tokens: int, chunk_tokens: int) -> list[slice]:
    return [
        slice(start, min(start + chunk_tokens, num_tokens)) for start in range(0, num_tokens, chunk_tokens)
    ]


def _logits(
    hidden_CH: torch.Tensor, weight_VH: torch.Tensor, temperature: float, shard: VocabShard
) -> torch.Tensor:
    return (hidden_CH @ weight_VH[: shard.num_rows].T).float() / temperature


def _locate(labels_C: torch.Tensor, shard: VocabShard) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the chunk whose label lies in this shard, and the label's local column."""
    columns_C = labels_C - shard.first_row
    local_C = ((columns_C >= 0) & (columns_C < shard.num_rows)).nonzero(as_tuple=True)[0]
    return local_C, columns_C[local_C]


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
        chunk_tokens: tokens whose logits exist at one time; memory is chunk_tokens * V floats, and time hardly changes.

    Returns:
        `(logprobs_R, entropy_R)`, float32, nats, the same on every rank of the group; both differentiable.
    """
    return _OutputLogprobs.apply(hidden_RH, weight_VH, labels_R, temperature, chunk_tokens, shard)  # type: ignore[return-value]


def all_gather_lists(items: list[Item], topology: Topology) -> list[list[Item]]:
    """Every rank's list, by rank. Collective over all ranks; the items are pickled."""
    if topology.world_size == 1:
        return [items]
    beat("gathering of lists")
    gathered: list[Any] = [None] * topology.world_size
    dist.all_gather_object(gathered, items)
    return gathered


def broadcast_object(item: Item | None, topology: Topology) -> Item:
    """Rank 0's item, on every rank. Collective over all ranks."""
    box = [item]
    beat("broadcast of an object")
    if topology.world_size > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[return-value]


def any_rank(is_so: bool, topology: Topology) -> bool:
    """True on every rank when it is so on one. Collective over all ranks."""
    beat("vote of all ranks")
    flag = torch.tensor([int(is_so)], dtype=torch.int32, device=topology.platform.device)
    if topology.world_size > 1:
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())


def sum_over_data_and_share(tensors: Sequence[torch.Tensor], topology: Topology) -> None:
    """Sum tensors of the last pipeline stages over the data-parallel ranks, then hand the sums to every stage.

    In place. Each data rank fills its own rows and leaves zeros elsewhere, so the sum restores the global tensor
    exactly, in any order of addition. Collective over all ranks; tensors on other stages are overwritten.
    """
    for tensor in tensors:
        if topology.is_last_stage and topology.data_size > 1:
            dist.all_reduce(tensor, group=topology.data_group)
        if topology.pipeline_size > 1:
            dist.broadcast(tensor, src=topology.last_stage_rank, group=topology.pipeline_group)


def sum_named_over_data_and_share(named: dict[str, torch.Tensor], topology: Topology) -> dict[str, float]:
    """Sums of named scalars over the data-parallel ranks of the last stage, on every rank.

    A rank that had nothing to add may pass an empty dict. Collective over all ranks; the sum is taken in rank order in
    float64, so it is the same everywhere.
    """
    mine = {name: float(value) for name, value in named.items()}
    if not topology.is_last_stage or topology.tensor_rank or topology.context_rank:
        mine = {}
    total: dict[str, float] = {}
    for of_rank in all_gather_lists([mine], topology):
        for name, value in of_rank[0].items():
            total[name] = total.get(name, 0.0) + value
    return total
