"""Attention and norm in plain torch, for the layers that Transformer Engine does not serve.

Shape legend: S packed tokens, L of them on this rank (S without context parallelism), N query heads and K key-value
heads on this rank, D head size, H hidden size.
"""

from dataclasses import dataclass
from itertools import pairwise
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
        """[L, N, D], [L, K, D], [L, K, D] -> [L, N * D]."""
        assert packed_seq_params is not None and attention_mask is None, "only packed batches are supported"
        bounds = packed_seq_params.cu_seqlens_q.tolist()
        size, rank = self._context_group.size(), self._context_group.rank()
        if size > 1:
            key_SKD = gather_context(key_LKD, bounds, self._context_group)
            value_SKD = gather_context(value_LKD, bounds, self._context_group)
        else:
            key_SKD, value_SKD = key_LKD, value_LKD
        parts, places = [], []
        for chunk in _query_chunks(bounds, size, rank):
            queries = (torch.tensor(chunk.query_starts)[:, None] + torch.arange(chunk.num_queries)).to(
                query_LND.device
            )
            keys = (torch.tensor(chunk.key_starts)[:, None] + torch.arange(chunk.num_keys)).to(
                query_LND.device
            )
            attended = self._attend(query_LND[queries], key_SKD[keys], value_SKD[keys])
            parts.append(attended.reshape(queries.numel(), -1))
            places.append(queries.flatten())
        return torch.cat(parts)[torch.cat(places).argsort()]

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Causal attention of the last tokens: [n, q, N, D], [n, k, K, D], [n, k, K, D] -> [n, q, N, D]; q <= k."""
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
class _QueryChunk:
    """Equally long runs of queries and the keys that they see, of several sequences."""

    num_queries: int
    num_keys: int
    query_starts: list[int]
    """In this rank's tokens."""
    key_starts: list[int]
    """In the whole microbatch's tokens."""


def _query_chunks(bounds: list[int], context_size: int, context_rank: int) -> list[_QueryChunk]:
    """One chunk a sequence without context parallelism, two with it (see parallel.context)."""
    chunks: dict[tuple[int, int], _QueryChunk] = {}
    for start, stop in pairwise(bounds):
        length = stop - start
        if context_size == 1:
            pieces = [(start, length, length)]
        else:
            size = length // (2 * context_size)
            first = start // context_size
            late = 2 * context_size - 1 - context_rank
            pieces = [
                (first, size, (context_rank + 1) * size),
                (first + size, size, (late + 1) * size),
            ]
        for query_start, num_queries, num_keys in pieces:
            if num_queries:
                chunk = chunks.setdefault((num_queries, num_keys), _QueryChunk(num_queries, num_keys, [], []))
                chunk.query_starts.append(query_start)
                chunk.key_starts.append(start)
    return list(chunks.values())


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
        """[..., H] -> [..., H]."""
        return F.rms_norm(hidden, self.weight.shape, self.weight, self.eps)
