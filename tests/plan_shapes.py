"""Model shapes for the tests of planning."""

from megatron_prime.models.hf_mapping import ModelShape


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


LLAMA_70B = ModelShape("llama", 80, 8192, 28672, 64, 8, 128, 128256, 131072, 1e-5)
