"""`ModelShape`: the sizes and flags of a model, as its config.json describes them. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_prime.hf.config_json import ModelFolderError, read_config_json, shape_fields
from megatron_prime.hf.families import FAMILIES
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


def fewest_positions(folders: Iterable[Path]) -> int:
    """Return the tokens of the longest sequence that all these models have positions for."""
    return min(read_shape(folder).max_position_embeddings for folder in folders)


@dataclass(frozen=True)
class ModelShape:
    """Sizes and flags of one decoder; enough to name and size each of its tensors.

    Raises ValueError when the sizes do not fit together.
    """

    family: str
    """The `model_type` of config.json, a key of `FAMILIES`."""
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    """Columns of a dense MLP; in a mixture of experts those of the layers in `dense_layers`."""
    num_attention_heads: int
    """Query heads."""
    num_query_groups: int
    """Key-value heads."""
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tied: bool = False
    """True if the output layer uses the embedding's weight."""
    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """True if queries and keys are normalized per head."""
    vocab_divisor: int = 128
    """The Megatron vocabulary is padded to a multiple of this times the tensor-parallel size; HF's never is."""
    num_experts: int = 0
    """Experts per layer; 0 for a dense model."""
    num_experts_per_tok: int = 0
    moe_ffn_hidden_size: int = 0
    """Columns of each expert's MLP."""
    norm_topk_prob: bool = True
    """True if the weights of a token's chosen experts are scaled to add up to 1."""
    dense_layers: tuple[int, ...] = ()
    """Layers of a mixture of experts that have a dense MLP instead."""

    def __post_init__(self) -> None:
        for name in _POSITIVE_FIELDS:
            value = getattr(self, name)
            # isinstance would accept true, which JSON may contain and which is a subclass of int.
            if type(value) is not int or value < 1:
                raise ValueError(
                    f"{name} must be a positive integer, got {value!r}: check the model's config.json"
                )
        # Each KV head serves the same number of query heads.
        if self.num_attention_heads % self.num_query_groups:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) is not a multiple of the KV heads"
                f" ({self.num_query_groups}): check num_key_value_heads in the model's config.json"
            )
        _check_experts(self)

    @property
    def query_size(self) -> int:
        """Rows of q_proj, which are those of all query heads."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Rows of k_proj and of v_proj, which are those of all KV heads."""
        return self.num_query_groups * self.head_dim

    @property
    def untied(self) -> bool:
        """True if the output layer has a weight of its own."""
        return not self.tied

    @property
    def is_moe(self) -> bool:
        """True if some layer has experts."""
        return self.num_experts > 0

    def has_experts(self, layer: int) -> bool:
        """Return whether the MLP of an HF layer is a mixture of experts."""
        return self.is_moe and layer not in self.dense_layers

    def weights_per_token(self, layer: int) -> int:
        """Return the number of weights of a layer's matrices that are applied to one token."""
        attention = 2 * self.hidden_size * (self.query_size + self.kv_size)
        if not self.has_experts(layer):
            return attention + 3 * self.hidden_size * self.ffn_hidden_size
        experts = 3 * self.hidden_size * self.moe_ffn_hidden_size * self.num_experts_per_tok
        return attention + experts + self.hidden_size * self.num_experts

    def padded_vocab_size(self, tp_size: int) -> int:
        """Return the rows of the whole Megatron embedding at this tensor-parallel size."""
        return padded_vocab_size(self.vocab_size, self.vocab_divisor, tp_size)

    @classmethod
    def from_hf_config(cls, hf_config: Mapping[str, Any], *, vocab_divisor: int = 128) -> ModelShape:
        """Return the shape that the content of a config.json describes, as transformers 4 or 5 writes it.

        Raises ValueError for an unknown `model_type`, for missing keys and for features that are not
        supported; the message names them.
        """
        return cls(**shape_fields(hf_config), vocab_divisor=vocab_divisor)


def read_shape(folder: Path) -> ModelShape:
    """Return the shape of the model in a folder, from its config.json.

    Every start of a run and every check goes through this function, so that they refuse the same models.

    Raises:
        ModelFolderError: There is no readable config.json, or it describes a model that is not supported.
    """
    config = read_config_json(Path(folder))
    try:
        return ModelShape.from_hf_config(config)
    except (TypeError, AttributeError) as error:
        # A value of another JSON type than every published file has, such as a string for a size.
        raise ModelFolderError(folder, f"config.json has a value of the wrong type: {error}") from error
    except ValueError as error:
        raise ModelFolderError(folder, str(error)) from error


def padded_vocab_size(vocab_size: int, divisor: int, tp_size: int) -> int:
    """Return the smallest multiple of `divisor * tp_size` that is at least `vocab_size`: equal shares per TP rank."""
    multiple = divisor * tp_size
    return math.ceil(vocab_size / multiple) * multiple


def _check_experts(shape: ModelShape) -> None:
    if shape.is_moe != FAMILIES[shape.family].is_moe:
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
