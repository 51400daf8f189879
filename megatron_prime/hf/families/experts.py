"""Rows of the parameter table and sizes in config.json that mixtures of experts share."""

from __future__ import annotations

from megatron_prime.hf.families.decoder import DECODER, replicated_vector
from megatron_prime.hf.families.table import ConfigJson, HFTensor, ParameterRow, Placement, TensorLayout


def read_num_experts(config: ConfigJson) -> int:
    """Return the number of experts per layer. Raises ValueError if config.json does not contain it."""
    # transformers 5 writes num_local_experts for every family; Qwen3-MoE files on the hub say num_experts.
    num_experts = config.get("num_experts") or config.get("num_local_experts")
    if not num_experts:
        raise ValueError(
            f"config.json of the {config.get('model_type')} model lacks num_experts or num_local_experts"
        )
    return num_experts


def expert_rows(moe: str, *, gate: str, up: str, down: str) -> tuple[ParameterRow, ...]:
    """Return the rows of layers with experts.

    Args:
        moe: HF name of the module that contains the router and the experts, with `{layer}`.
        gate: HF name of an expert's gate projection.
        up: HF name of an expert's up projection.
        down: HF name of an expert's down projection.
    """
    expert = f"{moe}.experts.{{expert}}"
    wide, tall = ("moe_ffn_hidden_size", "hidden_size"), ("hidden_size", "moe_ffn_hidden_size")
    experts = f"{DECODER}.mlp.experts"
    return (
        # Router and experts both read the normalized states, so Transformer Engine leaves this norm alone (no te_name).
        ParameterRow(
            Placement.MOE_LAYER,
            f"{DECODER}.pre_mlp_layernorm.weight",
            TensorLayout.REPLICATED,
            replicated_vector("model.layers.{layer}.post_attention_layernorm.weight", "hidden_size"),
        ),
        ParameterRow(
            Placement.MOE_LAYER,
            f"{DECODER}.mlp.router.weight",
            TensorLayout.REPLICATED,
            (HFTensor(f"{moe}.gate.weight", ("num_experts", "hidden_size")),),
        ),
        ParameterRow(
            Placement.EXPERT,
            f"{experts}.local_experts.{{expert}}.linear_fc1.weight",
            TensorLayout.CONCATENATED,
            (
                HFTensor(f"{expert}.{gate}.weight", wide, 0, "moe_ffn_hidden_size"),
                HFTensor(f"{expert}.{up}.weight", wide, 0, "moe_ffn_hidden_size"),
            ),
            grouped_name=f"{experts}.linear_fc1.weight{{expert}}",
        ),
        ParameterRow(
            Placement.EXPERT,
            f"{experts}.local_experts.{{expert}}.linear_fc2.weight",
            TensorLayout.CONCATENATED,
            (HFTensor(f"{expert}.{down}.weight", tall, 1, "moe_ffn_hidden_size"),),
            grouped_name=f"{experts}.linear_fc2.weight{{expert}}",
        ),
    )
