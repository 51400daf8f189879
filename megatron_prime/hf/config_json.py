"""What a Hugging Face config.json says, family by family, in the terms of `ModelShape`. Stdlib only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_prime.hf.rope import read_rope


@dataclass(frozen=True)
class FamilyTraits:
    """How a `model_type` reads its config. A bias that is None is decided by the config's own flag."""

    qkv_bias: bool | None
    attention_out_bias: bool | None
    mlp_bias: bool | None
    qk_norm: bool
    required_keys: tuple[str, ...]
    is_moe: bool = False


# Keys whose default in transformers is a concrete model's size are required: a silent default would be a
# wrong shape.
FAMILY_TRAITS: dict[str, FamilyTraits] = {
    "qwen2": FamilyTraits(True, False, False, False, ("num_key_value_heads",)),
    "qwen3": FamilyTraits(None, None, False, True, ("num_key_value_heads", "head_dim")),
    "llama": FamilyTraits(None, None, None, False, ()),
    "qwen3_moe": FamilyTraits(
        None,
        None,
        False,
        True,
        ("num_key_value_heads", "moe_intermediate_size", "num_experts_per_tok", "norm_topk_prob"),
        is_moe=True,
    ),
    "mixtral": FamilyTraits(
        False, False, False, False, ("num_key_value_heads", "num_experts_per_tok"), is_moe=True
    ),
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


def read_config(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ModelShape` from the dict of a config.json.

    Raises ValueError for an unknown `model_type`, for missing keys and for features that are not supported.
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
    rope_theta, rope_scaling = read_rope(hf_config)
    num_attention_heads = hf_config["num_attention_heads"]
    attention_bias = bool(hf_config.get("attention_bias", False))
    mlp_bias = bool(hf_config.get("mlp_bias", False))
    return dict(
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
        **(_read_experts(hf_config, family) if traits.is_moe else {}),
    )


def _read_experts(hf_config: Mapping[str, Any], family: str) -> dict[str, Any]:
    # transformers 5 writes num_local_experts for both families; Qwen3-MoE files on the hub say num_experts.
    num_experts = hf_config.get("num_experts") or hf_config.get("num_local_experts")
    if not num_experts:
        raise ValueError(f"config.json of the {family} model lacks num_experts or num_local_experts")
    experts: dict[str, Any] = {
        "num_experts": num_experts,
        "num_experts_per_tok": hf_config["num_experts_per_tok"],
    }
    if family == "mixtral":
        return experts | {"moe_ffn_hidden_size": hf_config["intermediate_size"], "norm_topk_prob": True}
    step = hf_config.get("decoder_sparse_step") or 1
    dense_only = hf_config.get("mlp_only_layers") or ()
    dense_layers = (
        layer for layer in range(hf_config["num_hidden_layers"]) if layer in dense_only or (layer + 1) % step
    )
    return experts | {
        "moe_ffn_hidden_size": hf_config["moe_intermediate_size"],
        "norm_topk_prob": bool(hf_config["norm_topk_prob"]),
        "dense_layers": tuple(dense_layers),
    }


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
    if _uses_sliding_window(hf_config, family):
        raise ValueError(f"the {family} config uses sliding window attention, which is not supported")
    if hf_config.get("quantization_config"):
        raise ValueError(
            f"the {family} checkpoint is quantized (quantization_config); start from an unquantized one"
        )
    if float(hf_config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ValueError(f"partial_rotary_factor of the {family} config is not 1.0, which is not supported")


def _uses_sliding_window(hf_config: Mapping[str, Any], family: str) -> bool:
    layer_types = hf_config.get("layer_types")
    if layer_types is not None:
        return any(layer_type != "full_attention" for layer_type in layer_types)
    if family == "mixtral":
        return hf_config.get("sliding_window") is not None  # there is no switch, and all layers slide
    if family == "qwen3_moe":
        return bool(hf_config.get("use_sliding_window") and hf_config.get("sliding_window"))
    # Without layer_types, transformers makes the layers from max_window_layers on slide; most Qwen2 files
    # carry a window size that the switch, or that limit, turns off.
    return bool(
        hf_config.get("use_sliding_window")
        and hf_config.get("sliding_window")
        and hf_config.get("max_window_layers", 28) < hf_config["num_hidden_layers"]
    )
