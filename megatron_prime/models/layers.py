"""Attention and norm in plain torch, for the layers that Transformer Engine does not serve.

Shape legend: S packed tokens, N query heads and K key-value heads on this rank, D head size, H hidden size.
"""

from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig


class PackedAttention(MegatronModule):
    """Causal attention inside each sequence of a packed (thd) batch, by torch's scaled_dot_product_attention.

    A `core_attention` for Megatron's SelfAttention. Grouped-query attention is native: keys are not repeated. Sequences
    of equal length share one kernel call; a block-diagonal mask over all tokens would cost several times more.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        **_unused: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(config=config)
        assert attn_mask_type == AttnMaskType.causal and attention_type == "self"
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query_SND: torch.Tensor,
        key_SKD: torch.Tensor,
        value_SKD: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        **_unused: Any,  # noqa: ANN401
    ) -> torch.Tensor:
        """[S, N, D], [S, K, D], [S, K, D] -> [S, N * D]."""
        assert packed_seq_params is not None and attention_mask is None, "only packed batches are supported"
        bounds = packed_seq_params.cu_seqlens_q.tolist()
        starts_by_length = defaultdict(list)
        for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
            if stop > start:
                starts_by_length[stop - start].append(start)
        parts, places = [], []
        for length, starts in starts_by_length.items():
            tokens = (torch.tensor(starts)[:, None] + torch.arange(length)).to(query_SND.device)
            query, key, value = (tensor[tokens].transpose(1, 2) for tensor in (query_SND, key_SKD, value_SKD))
            attended = F.scaled_dot_product_attention(
                query,
                key,
                value,
                is_causal=True,
                scale=self.softmax_scale,
                enable_gqa=query_SND.shape[1] != key_SKD.shape[1],
            )
            parts.append(attended.transpose(1, 2).reshape(tokens.numel(), -1))
            places.append(tokens.flatten())
        order = torch.cat(places).argsort()
        return torch.cat(parts)[order]


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
