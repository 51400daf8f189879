"""`ModelShape`: what a Hugging Face config.json says about a model, checked. Stdlib only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_prime.hf.config_json import FAMILY_TRAITS, read_config
from megatron_prime.hf.rope import RopeScaling

_POSITIVE_FIELDS = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "vocab_divisor",
)


@dataclass(frozen=True)
class ModelShape:
    """Sizes and switches of one decoder; enough to name and size each of its tensors.

    `vocab_divisor` pads the vocabulary of the Megatron model (see `padded_vocab_size`); the HF side is
    never padded. A dense model has 0 experts. In a mixture of experts `ffn_hidden_size` is of the layers
    named in `dense_layers` alone; `norm_topk_prob` makes the chosen experts' weights add up to 1. Raises
    ValueError when the sizes do not fit together.
    """

    family: str
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tied: bool = False
    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    vocab_divisor: int = 128
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_ffn_hidden_size: int = 0
    norm_topk_prob: bool = True
    dense_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in _POSITIVE_FIELDS:
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(
                    f"{name} must be a positive integer, got {value!r}: check the model's config.json"
                )
        if self.num_attention_heads % self.num_query_groups:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) is not a multiple of the KV heads"
                f" ({self.num_query_groups}): check num_key_value_heads in the model's config.json"
            )
        _check_experts(self)

    @property
    def query_size(self) -> int:
        """Rows of q_proj: all query heads."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Rows of k_proj and of v_proj: all KV heads."""
        return self.num_query_groups * self.head_dim

    @property
    def untied(self) -> bool:
        """Whether the output layer has a weight of its own."""
        return not self.tied

    @property
    def is_moe(self) -> bool:
        """Whether some layer has experts."""
        return self.num_experts > 0

    def has_experts(self, layer: int) -> bool:
        """Whether the MLP of an HF layer is a mixture of experts."""
        return self.is_moe and layer not in self.dense_layers

    def padded_vocab_size(self, tp_size: int) -> int:
        """Rows of the whole Megatron embedding at this tensor-parallel size."""
        return padded_vocab_size(self.vocab_size, self.vocab_divisor, tp_size)

    @classmethod
    def from_hf_config(cls, hf_config: Mapping[str, Any], *, vocab_divisor: int = 128) -> ModelShape:
        """Read the dict of a config.json (written by transformers 4 or 5).

        Raises ValueError for an unknown `model_type`, for missing keys and for features that are not
        supported; the message names them.
        """
        return cls(**read_config(hf_config), vocab_divisor=vocab_divisor)


def padded_vocab_size(vocab_size: int, divisor: int, tp_size: int) -> int:
    """Smallest multiple of `divisor * tp_size` that is at least `vocab_size`: an equal share a TP rank."""
    multiple = divisor * tp_size
    return math.ceil(vocab_size / multiple) * multiple


def _check_experts(shape: ModelShape) -> None:
    if shape.is_moe != FAMILY_TRAITS[shape.family].is_moe:
        raise ValueError(f"num_experts is {shape.num_experts}, which a {shape.family} model cannot have")
    if not shape.is_moe:
        return
    if shape.moe_ffn_hidden_size < 1 or not 1 <= shape.num_experts_per_tok <= shape.num_experts:
        raise ValueError(
            f"{shape.num_experts} experts of {shape.moe_ffn_hidden_size} columns, {shape.num_experts_per_tok} for a"
            " token: check num_experts, moe_intermediate_size and num_experts_per_tok in the model's config.json"
        )
    if not set(shape.dense_layers) < set(range(shape.num_layers)):
        raise ValueError(
            f"dense_layers {shape.dense_layers} must be some, not all, of the model's {shape.num_layers} layers"
        )
