"""Qwen3: a dense decoder that normalizes queries and keys per head."""

from megatron_prime.hf.families.decoder import DENSE_DECODER
from megatron_prime.hf.families.table import Family

FAMILY = Family(
    "qwen3",
    DENSE_DECODER,
    required_keys=("num_key_value_heads", "head_dim"),
    qkv_bias=None,
    attention_out_bias=None,
    qk_norm=True,
)
