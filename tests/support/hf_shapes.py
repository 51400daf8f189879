"""Small model shapes of every family, and the import of their weights by one rank."""

import dataclasses

import torch

from megatron_prime.hf.convert import import_hf
from megatron_prime.hf.families import FAMILIES
from megatron_prime.hf.mapping import ModelShape, hf_tensors, parameters_of

SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "vocab_size": 37,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}

VARIANTS = {name: {"model_type": name} for name in FAMILIES} | {
    "qwen2": {"model_type": "qwen2", "hidden_size": 24},
    "qwen2_tied": {"model_type": "qwen2", "hidden_size": 24, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": True},
    "qwen3_bias": {"model_type": "qwen3", "attention_bias": True},
    # The window holds the longest sequence; without the key, transformers uses one of 4096.
    "mistral": {"model_type": "mistral", "sliding_window": 64},
    "llama_tied": {"model_type": "llama", "tie_word_embeddings": True},
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "norm_topk_prob": True,
    },
    "qwen3_moe_mixed": {
        "model_type": "qwen3_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "norm_topk_prob": False,
        "mlp_only_layers": [1],
        "tie_word_embeddings": True,
    },
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "llama_biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
}
"""Changes to SIZES by variant; a dense family without an entry is tested with SIZES unchanged."""


def make_config(variant="llama", **changes):
    config = SIZES | VARIANTS[variant] | changes
    return {key: value for key, value in config.items() if value is not None}


def make_shape(variant="llama", **changes):
    return dataclasses.replace(ModelShape.from_hf_config(make_config(variant), vocab_divisor=4), **changes)


def random_hf(shape):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(dims, generator=generator) for name, dims in hf_tensors(shape).items()}


def slice_reader(tensors):
    return lambda name, dim, start, length: tensors[name].narrow(dim, start, length)


def import_rank(shape, tensors, **where):
    parameters = parameters_of(shape, **where)
    named = {p.megatron_name: torch.full(p.shape, float("nan")) for p in parameters}
    import_hf(named, parameters, slice_reader(tensors))
    return parameters, named
