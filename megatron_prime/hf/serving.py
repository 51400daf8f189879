"""Memory that a server needs for a model: its weights, and the keys and values of the tokens in its cache."""

from __future__ import annotations

import math
from functools import lru_cache

from megatron_prime.hf.mapping import ModelShape, hf_tensors

SERVED_BYTES = 2
"""Bytes per element of served weights and cached keys and values: bf16."""


@lru_cache(maxsize=256)
def num_parameters(shape: ModelShape) -> int:
    """Return the number of parameters in the HF checkpoint, without padding."""
    return sum(math.prod(dims) for dims in hf_tensors(shape).values())


def kv_bytes_per_token(shape: ModelShape, width: int = SERVED_BYTES, tensor: int = 1) -> int:
    """Return the bytes of the keys and values of one token, over all layers, on one rank of a server.

    Args:
        shape: the model.
        width: bytes per element.
        tensor: tensor-parallel size of the server, which repeats KV heads if it has more ranks than there are heads.
    """
    heads = math.ceil(shape.num_query_groups / tensor)
    return 2 * heads * shape.head_dim * shape.num_layers * width


def cache_tokens(shape: ModelShape, tensor: int, num_bytes: int) -> int:
    """Return the number of tokens whose keys and values fit beside the weights on each rank of a server.

    Args:
        shape: the model.
        tensor: tensor-parallel size of the server.
        num_bytes: memory on each rank for weights and cache together.
    """
    weights = num_parameters(shape) * SERVED_BYTES // tensor
    return max(0, num_bytes - weights) // kv_bytes_per_token(shape, tensor=tensor)
