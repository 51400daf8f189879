"""Attention and norm in plain torch, for runs without Transformer Engine.

Shape legend: S packed tokens, L of them on this rank (S without context parallelism), N query heads and K key-value
heads on this rank, D head size, H hidden size.
"""

from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_prime.parallel.context import gather_context


class PackedAttention(MegatronModule):
    """Causal attention inside each sequence of a packed (thd) batch, by torch's scaled_dot_product_attention.

    A `core_attention` for Megatron's SelfAttention. Grouped-query attention is native: keys are not repeated. Sequences
    of equal length share one kernel call; a block-diagonal mask over all tokens would cost several times more. Under
    context parallelism each rank attends from its own tokens to keys and values gathered from all ranks.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        **_unused: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(config=config)
        assert attn_mask_type == AttnMaskType.causal and attention_type == "self"
        assert pg_collection is not None
        self.softmax_scale = softmax_scale
        self._context_group = pg_collection.cp

    def forward(
        self,
        query_LND: torch.Tensor,
        key_LKD: torch.Tensor,
        value_LKD: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        **_unused: Any,  # noqa: ANN401
    ) -> torch.Tensor:
        """Return attention outputs: [L, N, D], [L, K, D], [L, K, D] -> [L, N * D]."""
        assert packed_seq_params is not None and attention_mask is None, "only packed batches are supported"
        bounds = packed_seq_params.cu_seqlens_q.tolist()
        size, rank = self._context_group.size(), self._context_group.rank()
        if size > 1:
            key_SKD = gather_context(key_LKD, bounds, self._context_group)
            value_SKD = gather_context(value_LKD, bounds, self._context_group)
        else:
            key_SKD, value_SKD = key_LKD, value_LKD
        # Sequences are stored end to end, so split and cat copy only the result. Indexing would copy queries, keys and
        # values, and scatter their gradients one by one.
        runs = _runs(bounds, size, rank)
        queries = query_LND.split([run.num_sequences * run.num_queries for run in runs])
        # With context parallelism, both halves of a sequence's queries attend to the same keys.
        lengths = [run.num_sequences * run.num_tokens for run in (runs if size == 1 else runs[::2])]
        keys, values = key_SKD.split(lengths), value_SKD.split(lengths)
        parts = []
        for index, (run, query) in enumerate(zip(runs, queries, strict=True)):
            sequence = index if size == 1 else index // 2
            shape = (run.num_sequences, run.num_tokens)
            attended = self._attend(
                query.unflatten(0, (run.num_sequences, run.num_queries)),
                keys[sequence].unflatten(0, shape)[:, : run.num_keys],
                values[sequence].unflatten(0, shape)[:, : run.num_keys],
            )
            parts.append(attended.flatten(2).flatten(0, 1))
        return torch.cat(parts)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Return causal attention of the last q tokens: [n, q, N, D], [n, k, K, D], [n, k, K, D] -> [n, q, N, D]."""
        num_queries, num_keys = query.shape[1], key.shape[1]
        mask = None
        if num_queries != num_keys:
            # torch's is_causal aligns the mask at the first key; these queries are the last num_queries tokens.
            ones = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device)
            mask = ones.tril(num_keys - num_queries)
        attended = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
            scale=self.softmax_scale,
            enable_gqa=query.shape[2] != key.shape[2],
        )
        return attended.transpose(1, 2)


@dataclass(frozen=True)
class _Run:
    """Queries of one kernel call: those of adjacent sequences of equal length, or half of one sequence's queries."""

    num_sequences: int
    num_tokens: int
    """Tokens per sequence."""
    num_queries: int
    """Queries per sequence on this rank."""
    num_keys: int
    """Number of first keys of each sequence that the last query attends to."""


def _runs(bounds: list[int], context_size: int, context_rank: int) -> list[_Run]:
    """Return the runs in the order of this rank's tokens; two per sequence with context parallelism."""
    lengths = [stop - start for start, stop in pairwise(bounds) if stop > start]
    if context_size == 1:
        counted = ((length, sum(1 for _ in same)) for length, same in groupby(lengths))
        return [_Run(count, length, length, length) for length, count in counted]
    runs = []
    for length in lengths:
        size = length // (2 * context_size)
        late = 2 * context_size - 1 - context_rank
        runs.append(_Run(1, length, size, (context_rank + 1) * size))
        runs.append(_Run(1, length, size, (late + 1) * size))
    return runs


class RMSNorm(torch.nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension.

    Megatron's own torch wrapper refuses sequence parallelism. The tag on the weight makes Megatron sum its gradient
    over the tensor-parallel ranks, each of which sees its own slice of the sequence; without it the loss is right and
    the gradient is wrong.
    """

    def __init__(
        self,
        config: TransformerConfig,
        hidden_size: int,
        eps: float = 1e-5,
        **_unused: Any,  # noqa: ANN401
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the normalized input: [..., H] -> [..., H]."""
        return F.rms_norm(hidden, self.weight.shape, self.weight, self.eps)
