"""Mixtral: experts in every layer, with tensor names of its own, and no bias."""

from typing import Any

from megatron_prime.hf.families.decoder import ATTENTION_ROWS, EMBEDDING_ROWS, OUTPUT_ROWS
from megatron_prime.hf.families.experts import expert_rows, read_num_experts
from megatron_prime.hf.families.table import ConfigJson, Family


def _read_experts(config: ConfigJson) -> dict[str, Any]:
    return {
        "num_experts": read_num_experts(config),
        "num_experts_per_tok": config["num_experts_per_tok"],
        "moe_ffn_hidden_size": config["intermediate_size"],
        # Mixtral has no such switch: transformers always normalizes the weights of the chosen experts.
        "norm_topk_prob": True,
    }


FAMILY = Family(
    "mixtral",
    (
        *EMBEDDING_ROWS,
        *ATTENTION_ROWS,
        *expert_rows("model.layers.{layer}.block_sparse_moe", gate="w1", up="w3", down="w2"),
        *OUTPUT_ROWS,
    ),
    required_keys=("num_key_value_heads", "num_experts_per_tok"),
    read_experts=_read_experts,
    # There is no switch: a window, if there is one, applies to all layers.
    uses_sliding_window=lambda config: config.get("sliding_window") is not None,
    default_rope_theta=1e6,
)
