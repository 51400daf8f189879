"""Tiny random Hugging Face models of every supported family, used as oracles."""

from pathlib import Path

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
EXPERTS = {"num_experts_per_tok": 2, "tie_word_embeddings": False}


SHALLOW = "shallow "
"""Before a name: with two layers instead of four, for tests that need no more."""
DEEP = "deep "
"""Before a name: with six layers instead of four, for parts of a pipeline that have unequal numbers of layers."""


def _qwen3_moe(**changes) -> PreTrainedModel:
    sizes = SIZES | EXPERTS | {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 8}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes | {"norm_topk_prob": True} | changes))


DENSE_BUILDERS = {
    "qwen2": lambda **sizes: Qwen2ForCausalLM(Qwen2Config(**SIZES | sizes, tie_word_embeddings=False)),
    "qwen2 tied": lambda **sizes: Qwen2ForCausalLM(Qwen2Config(**SIZES | sizes, tie_word_embeddings=True)),
    "qwen3": lambda **sizes: Qwen3ForCausalLM(
        Qwen3Config(**SIZES | sizes, head_dim=12, tie_word_embeddings=False)
    ),
    "qwen3 tied": lambda **sizes: Qwen3ForCausalLM(
        Qwen3Config(**SIZES | sizes, head_dim=8, tie_word_embeddings=True)
    ),
    "llama": lambda **sizes: LlamaForCausalLM(LlamaConfig(**SIZES | sizes, tie_word_embeddings=False)),
    "llama rope": lambda **sizes: LlamaForCausalLM(
        LlamaConfig(**SIZES | sizes, tie_word_embeddings=True, rope_parameters=LLAMA3_ROPE)
    ),
}


MOE_BUILDERS = {
    "qwen3 moe": _qwen3_moe,
    # On a CPU SGLang pads expert shards that are smaller than this.
    "qwen3 moe wide": lambda **sizes: _qwen3_moe(moe_intermediate_size=128, **sizes),
    "qwen3 moe mixed": lambda **sizes: _qwen3_moe(norm_topk_prob=False, mlp_only_layers=[1], **sizes),
    "mixtral": lambda **sizes: MixtralForCausalLM(
        MixtralConfig(**SIZES | EXPERTS | sizes, num_local_experts=4, sliding_window=None)
    ),
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 4.0,
    "attention_factor": 1.3,
}
SCALED_BUILDERS = {
    "mistral": lambda **sizes: MistralForCausalLM(
        MistralConfig(**SIZES | sizes, head_dim=12, sliding_window=None)
    ),
    "qwen3 yarn": lambda **sizes: Qwen3ForCausalLM(
        Qwen3Config(**SIZES | sizes, head_dim=12, tie_word_embeddings=False, rope_parameters=YARN_ROPE)
    ),
    "llama linear": lambda **sizes: LlamaForCausalLM(
        LlamaConfig(
            **SIZES | sizes, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
        )
    ),
    "qwen2 dynamic": lambda **sizes: Qwen2ForCausalLM(
        Qwen2Config(
            **SIZES | sizes, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
        )
    ),
}
"""Mistral, and dense models with scaled positions."""
BUILDERS = DENSE_BUILDERS | MOE_BUILDERS | SCALED_BUILDERS
FUSED_EXPERTS = {
    # model_type: (name of the MLP in a checkpoint, names of its gate, up and down projections)
    "qwen3_moe": (".mlp.", "gate_proj", "up_proj", "down_proj"),
    "mixtral": (".block_sparse_moe.", "w1", "w3", "w2"),
}


def as_in_checkpoint(model: PreTrainedModel, named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors under their checkpoint names, one per expert, although transformers fuses experts in memory."""
    if model.config.model_type not in FUSED_EXPERTS:
        return dict(named)
    mlp, gate, up, down = FUSED_EXPERTS[model.config.model_type]
    tensors = {}
    for name, tensor in named.items():
        stem, _, kind = name.rpartition(".")
        if ".mlp.experts." not in name:
            is_router = name.endswith(".mlp.gate.weight")
            tensors[name.replace(".mlp.", mlp) if is_router else name] = tensor
            continue
        for expert, matrix in enumerate(tensor):
            prefix = f"{stem.replace('.mlp.', mlp)}.{expert}"
            if kind == "down_proj":
                tensors[f"{prefix}.{down}.weight"] = matrix
            else:
                tensors[f"{prefix}.{gate}.weight"], tensors[f"{prefix}.{up}.weight"] = matrix.chunk(2)
    return tensors


def tiny_model(name: str, seed: int = 0) -> PreTrainedModel:
    """Return an fp32 model in which all weights are random, norms and biases too, so that tests notice missing ones."""
    torch.manual_seed(seed)
    depths = {SHALLOW: 2, DEEP: 6}
    prefix = next((prefix for prefix in depths if name.startswith(prefix)), "")
    sizes = {"num_hidden_layers": depths[prefix]} if prefix else {}
    model = BUILDERS[name.removeprefix(prefix)](**sizes)
    for parameter_name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in parameter_name), std=0.1)
    return model.eval()


def save_tiny_model(name: str, folder: Path, seed: int = 0) -> PreTrainedModel:
    """Save a tiny model as an HF checkpoint and return it."""
    model = tiny_model(name, seed)
    model.save_pretrained(folder)
    return model


def ragged_sequences(vocab_size: int = 300, seed: int = 1) -> list[tuple[list[int], list[int]]]:
    """Return (prompt ids, response ids) of several lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [(3, 5), (7, 2), (1, 9), (4, 4), (6, 8)]
    return [
        tuple(torch.randint(0, vocab_size, (length,), generator=generator).tolist() for length in pair)
        for pair in lengths
    ]
