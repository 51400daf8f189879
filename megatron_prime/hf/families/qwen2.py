"""Qwen2 and Qwen2.5: a dense decoder with a bias in the query, key and value projections."""

from megatron_prime.hf.families.decoder import DENSE_DECODER
from megatron_prime.hf.families.table import Family

FAMILY = Family("qwen2", DENSE_DECODER, required_keys=("num_key_value_heads",), qkv_bias=True)
