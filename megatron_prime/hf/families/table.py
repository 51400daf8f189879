"""Row types of the parameter tables, and `Family`: everything the package knows about one `model_type`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

ConfigJson = Mapping[str, Any]
"""The parsed content of a config.json."""


class Placement(Enum):
    """The part of the model that a parameter belongs to, which decides the pipeline stages that hold it."""

    FIRST_STAGE = "first stage"
    LAYER = "every layer"
    DENSE_LAYER = "every layer whose MLP is not a mixture of experts"
    MOE_LAYER = "every layer with experts, once"
    EXPERT = "every expert of every layer with experts"
    LAST_STAGE = "last stage"
    LAST_STAGE_COPY = "last stage, unless it is the first too"


# The resharding plan treats these by layer, and all other placements once per model.
LAYER_PLACEMENTS = (Placement.LAYER, Placement.DENSE_LAYER, Placement.MOE_LAYER, Placement.EXPERT)
"""Placements whose parameters exist once or more per transformer layer."""


class TensorLayout(Enum):
    """The way in which a Megatron parameter is split over the tensor-parallel ranks."""

    REPLICATED = "whole on each rank"
    VOCAB = "equal blocks of the padded vocabulary, dim 0"
    # Each rank holds its block of the gate projection followed by its block of the up projection, so a rank's
    # parameter is not a contiguous part of the whole fused tensor.
    CONCATENATED = "each tensor's own block, one after the other"
    QKV_GROUPS = "each KV group's query heads, key and value, one group after the other"


@dataclass(frozen=True)
class HFTensor:
    """One tensor of an HF checkpoint.

    `dims` and `unit` are names of `ModelShape` attributes; `unit` counts the pieces that may not be divided
    along `parallel_dim` (heads, KV heads). A tensor without a `parallel_dim` is whole on each rank.
    """

    name: str
    dims: tuple[str, ...]
    parallel_dim: int | None = None
    unit: str | None = None

    @property
    def is_linear(self) -> bool:
        """True for the matrix of a linear layer, which engines may quantize; embeddings and routers are not."""
        return len(self.dims) == 2 and self.unit is not None


@dataclass(frozen=True)
class ParameterRow:
    """One Megatron parameter and the HF tensors that it is made of.

    Names contain `{layer}` for parameters of a layer and `{expert}` for those of an expert.
    """

    placement: Placement
    megatron_name: str
    layout: TensorLayout
    tensors: tuple[HFTensor, ...]
    when: str | None = None
    """Flag of `ModelShape` that must be true for the parameter to exist; None if it always exists."""
    te_name: str | None = None
    """Megatron's name when Transformer Engine fuses the parameter into the next linear layer."""
    grouped_name: str | None = None
    """Megatron's name when one module computes all experts by a grouped GEMM."""


def later_layers_slide(config: ConfigJson) -> bool:
    """Return whether transformers uses a sliding window in the layers from `max_window_layers` on.

    Many Qwen2 files contain a window size that `use_sliding_window`, or a limit beyond the last layer, turns off.
    """
    return bool(
        config.get("use_sliding_window")
        and config.get("sliding_window")
        and config.get("max_window_layers", 28) < config["num_hidden_layers"]
    )


@dataclass(frozen=True)
class Family:
    """A model family: how its config.json is read, and which HF tensors make up its Megatron parameters.

    A bias is True or False where the family fixes it, and None where the config's own `attention_bias` or
    `mlp_bias` decides.
    """

    model_type: str
    """The `model_type` of config.json."""
    rows: tuple[ParameterRow, ...]
    required_keys: tuple[str, ...] = ()
    """Keys without which transformers would use the size of one concrete model, silently a wrong shape."""
    qkv_bias: bool | None = False
    attention_out_bias: bool | None = False
    mlp_bias: bool | None = False
    qk_norm: bool = False
    read_experts: Callable[[ConfigJson], dict[str, Any]] | None = None
    """Reads the fields of `ModelShape` that describe experts; None for a family of dense models."""
    uses_sliding_window: Callable[[ConfigJson], bool] = later_layers_slide
    """Tells for a file without `layer_types` whether some layer attends to a window only, which is not supported."""

    default_rope_theta: float = 10000.0
    """Theta that transformers uses for a file without one."""

    @property
    def is_moe(self) -> bool:
        """True for a family whose models are mixtures of experts."""
        return self.read_experts is not None
