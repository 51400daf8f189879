"""Model shapes for the tests of planning and resharding."""

from megatron_prime.hf.mapping import ModelShape


def make_shape(**changes):
    values = {
        "family": "llama",
        "num_layers": 4,
        "hidden_size": 3,
        "ffn_hidden_size": 16,
        "num_attention_heads": 16,
        "num_query_groups": 8,
        "head_dim": 2,
        "vocab_size": 101,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "vocab_divisor": 3,
    }
    return ModelShape(**(values | changes))


def make_moe_shape(**changes):
    values = {
        "family": "qwen3_moe",
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_ffn_hidden_size": 8,
    }
    return make_shape(**(values | changes))


LLAMA_70B = ModelShape("llama", 80, 8192, 28672, 64, 8, 128, 128256, 131072, 1e-5)
MOE_1T = ModelShape(
    "qwen3_moe",
    61,
    7168,
    18432,
    64,
    8,
    128,
    129280,
    131072,
    1e-6,
    qk_norm=True,
    num_experts=384,
    num_experts_per_tok=8,
    moe_ffn_hidden_size=2048,
)
"""The sizes of the largest open mixture-of-experts models, with this project's attention: 1.04e12 parameters."""
