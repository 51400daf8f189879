"""`ModelShape`: what a Hugging Face config.json says about a model, checked. Stdlib only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RopeScaling:
    """Llama-3 frequency scaling of rotary embeddings; the only kind that is supported besides none."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class FamilyTraits:
    """How a `model_type` reads its config. A bias that is None is decided by the config's own flag."""

    qkv_bias: bool | None
    attention_out_bias: bool | None
    mlp_bias: bool | None
    qk_norm: bool
    required_keys: tuple[str, ...]


# Keys whose default in transformers is a concrete model's size are required: a silent default would be a
# wrong shape.
FAMILY_TRAITS: dict[str, FamilyTraits] = {
    "qwen2": FamilyTraits(True, False, False, False, ("num_key_value_heads",)),
    "qwen3": FamilyTraits(None, None, False, True, ("num_key_value_heads", "head_dim")),
    "llama": FamilyTraits(None, None, None, False, ()),
}

_REQUIRED_KEYS = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "vocab_size",
    "rms_norm_eps",
    "max_position_embeddings",
)
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
_LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


@dataclass(frozen=True)
class ModelShape:
    """Sizes and switches of one dense decoder; enough to name and size each of its tensors.

    `vocab_divisor` pads the vocabulary of the Megatron model (see `padded_vocab_size`); the HF side is
    never padded. Raises ValueError when the sizes do not fit together.
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

    def padded_vocab_size(self, tp_size: int) -> int:
        """Rows of the whole Megatron embedding at this tensor-parallel size."""
        return padded_vocab_size(self.vocab_size, self.vocab_divisor, tp_size)

    @classmethod
    def from_hf_config(cls, hf_config: Mapping[str, Any], *, vocab_divisor: int = 128) -> ModelShape:
        """Read the dict of a config.json (written by transformers 4 or 5).

        Raises ValueError for an unknown `model_type`, for missing keys and for features that are not
        supported; the message names them.
        """
        family = hf_config.get("model_type")
        if family not in FAMILY_TRAITS:
            raise ValueError(
                f"unknown model_type {family!r} in config.json; known: {', '.join(sorted(FAMILY_TRAITS))}"
            )
        traits = FAMILY_TRAITS[family]
        missing = [key for key in (*_REQUIRED_KEYS, *traits.required_keys) if hf_config.get(key) is None]
        if missing:
            raise ValueError(f"config.json of the {family} model lacks {', '.join(missing)}")
        _refuse_unsupported(hf_config, family)
        rope_theta, rope_scaling = _read_rope(hf_config)
        num_attention_heads = hf_config["num_attention_heads"]
        attention_bias = bool(hf_config.get("attention_bias", False))
        mlp_bias = bool(hf_config.get("mlp_bias", False))
        return cls(
            family=family,
            num_layers=hf_config["num_hidden_layers"],
            hidden_size=hf_config["hidden_size"],
            ffn_hidden_size=hf_config["intermediate_size"],
            num_attention_heads=num_attention_heads,
            num_query_groups=hf_config.get("num_key_value_heads") or num_attention_heads,
            head_dim=_read_head_dim(hf_config),
            vocab_size=hf_config["vocab_size"],
            max_position_embeddings=hf_config["max_position_embeddings"],
            rms_norm_eps=float(hf_config["rms_norm_eps"]),
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            tied=bool(hf_config.get("tie_word_embeddings", False)),
            qkv_bias=_pick(traits.qkv_bias, attention_bias),
            attention_out_bias=_pick(traits.attention_out_bias, attention_bias),
            mlp_bias=_pick(traits.mlp_bias, mlp_bias),
            qk_norm=traits.qk_norm,
            vocab_divisor=vocab_divisor,
        )


def padded_vocab_size(vocab_size: int, divisor: int, tp_size: int) -> int:
    """Smallest multiple of `divisor * tp_size` that is at least `vocab_size`: an equal share a TP rank."""
    multiple = divisor * tp_size
    return math.ceil(vocab_size / multiple) * multiple


def _pick(fixed: bool | None, from_config: bool) -> bool:
    return from_config if fixed is None else fixed


def _read_head_dim(hf_config: Mapping[str, Any]) -> int:
    head_dim = hf_config.get("head_dim")
    if head_dim is not None:
        return head_dim
    hidden_size, num_heads = hf_config["hidden_size"], hf_config["num_attention_heads"]
    if hidden_size % num_heads:
        raise ValueError(
            f"config.json has no head_dim and hidden_size ({hidden_size}) is not a multiple of"
            f" num_attention_heads ({num_heads})"
        )
    return hidden_size // num_heads


def _refuse_unsupported(hf_config: Mapping[str, Any], family: str) -> None:
    activation = hf_config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ValueError(f"hidden_act {activation!r} of the {family} model is not supported; only 'silu' is")
    if _uses_sliding_window(hf_config):
        raise ValueError(f"the {family} config uses sliding window attention, which is not supported")
    if hf_config.get("quantization_config"):
        raise ValueError(
            f"the {family} checkpoint is quantized (quantization_config); start from an unquantized one"
        )
    if float(hf_config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ValueError(f"partial_rotary_factor of the {family} config is not 1.0, which is not supported")


def _uses_sliding_window(hf_config: Mapping[str, Any]) -> bool:
    layer_types = hf_config.get("layer_types")
    if layer_types is not None:
        return any(layer_type != "full_attention" for layer_type in layer_types)
    # Without layer_types, transformers makes the layers from max_window_layers on slide; most Qwen2 files
    # carry a window size that the switch, or that limit, turns off.
    return bool(
        hf_config.get("use_sliding_window")
        and hf_config.get("sliding_window")
        and hf_config.get("max_window_layers", 28) < hf_config["num_hidden_layers"]
    )


def _read_rope(hf_config: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Theta and scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`."""
    settings = hf_config.get("rope_parameters") or hf_config.get("rope_scaling") or {}
    # 10000 is what transformers takes for a file without a theta, as the first Llama checkpoints were
    # published.
    theta = settings.get("rope_theta") or hf_config.get("rope_theta") or 10000.0
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if any(isinstance(value, Mapping) for value in settings.values()):
        raise ValueError("rope_parameters that differ by layer type are not supported")
    if float(settings.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ValueError("partial_rotary_factor in rope_parameters is not 1.0, which is not supported")
    if kind == "default":
        return float(theta), None
    if kind != "llama3":
        raise ValueError(f"rope scaling of type {kind!r} is not supported; known: default, llama3")
    missing = [key for key in _LLAMA3_KEYS if settings.get(key) is None]
    if missing:
        raise ValueError(f"llama3 rope scaling in config.json lacks {', '.join(missing)}")
    return float(theta), RopeScaling(
        factor=float(settings["factor"]),
        low_freq_factor=float(settings["low_freq_factor"]),
        high_freq_factor=float(settings["high_freq_factor"]),
        original_max_position_embeddings=int(settings["original_max_position_embeddings"]),
    )
