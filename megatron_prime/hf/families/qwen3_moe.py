"""Qwen3-MoE: Qwen3's attention with experts in all layers, or in those that config.json selects."""

from typing import Any

from megatron_prime.hf.families.decoder import ATTENTION_ROWS, DENSE_MLP_ROWS, EMBEDDING_ROWS, OUTPUT_ROWS
from megatron_prime.hf.families.experts import expert_rows, read_num_experts
from megatron_prime.hf.families.table import ConfigJson, Family


def _read_experts(config: ConfigJson) -> dict[str, Any]:
    step = config.get("decoder_sparse_step") or 1
    dense_only = config.get("mlp_only_layers") or ()
    # As in transformers: every step-th layer has experts, counted from 1, unless it is listed as dense.
    dense_layers = (
        layer for layer in range(config["num_hidden_layers"]) if layer in dense_only or (layer + 1) % step
    )
    return {
        "num_experts": read_num_experts(config),
        "num_experts_per_tok": config["num_experts_per_tok"],
        "moe_ffn_hidden_size": config["moe_intermediate_size"],
        "norm_topk_prob": bool(config["norm_topk_prob"]),
        "dense_layers": tuple(dense_layers),
    }


FAMILY = Family(
    "qwen3_moe",
    (
        *EMBEDDING_ROWS,
        *ATTENTION_ROWS,
        *DENSE_MLP_ROWS,
        *expert_rows("model.layers.{layer}.mlp", gate="gate_proj", up="up_proj", down="down_proj"),
        *OUTPUT_ROWS,
    ),
    required_keys=("num_key_value_heads", "moe_intermediate_size", "num_experts_per_tok", "norm_topk_prob"),
    qkv_bias=None,
    attention_out_bias=None,
    qk_norm=True,
    read_experts=_read_experts,
    # Unlike in Qwen2 and Qwen3, `max_window_layers` does not restrict the window to the later layers.
    uses_sliding_window=lambda config: bool(
        config.get("use_sliding_window") and config.get("sliding_window")
    ),
)
