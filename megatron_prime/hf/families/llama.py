"""Llama 2 and 3: a dense decoder whose biases are switches of config.json."""

from megatron_prime.hf.families.decoder import DENSE_DECODER
from megatron_prime.hf.families.table import Family

FAMILY = Family("llama", DENSE_DECODER, qkv_bias=None, attention_out_bias=None, mlp_bias=None)
