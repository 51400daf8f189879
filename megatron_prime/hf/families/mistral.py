"""Mistral (7B from v0.3 on, Nemo): a dense decoder without biases."""

from megatron_prime.hf.families.decoder import DENSE_DECODER
from megatron_prime.hf.families.table import Family

FAMILY = Family(
    "mistral",
    DENSE_DECODER,
    required_keys=("num_key_value_heads",),
    # There is no switch: a window applies to all layers, and transformers uses one of 4096 where the key is missing.
    uses_sliding_window=lambda config: config.get("sliding_window", 4096) is not None,
)
