"""The experts that SGLang routed each token to, parsed from its answers and checked, for replay in training."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_prime.hf.shape import ModelShape, read_shape


class RoutingReader:
    """Reads `routed_experts` in answers to POST /generate.

    SGLang returns int32 [tokens - 1, layers, K] in base64. The last token is sampled but never fed to the model, so it
    has no experts.
    """

    def __init__(self, shape: ModelShape) -> None:
        """Make a reader for a model. Raises ValueError for a model without experts."""
        if not shape.is_moe:
            raise ValueError(
                f"rollout.sglang.routing_replay needs a mixture of experts; the {shape.family} model has none"
            )
        self._shape = shape
        self._moe_layers = [layer for layer in range(shape.num_layers) if shape.has_experts(layer)]

    @staticmethod
    def of(model_path: Path) -> "RoutingReader":
        """Return a reader for the model of an HF checkpoint. Raises ValueError when config.json can't be read."""
        return RoutingReader(read_shape(model_path))

    def read(self, meta: Mapping[str, Any], num_tokens: int) -> torch.Tensor:
        """Return the experts, [num_tokens - 1, layers, K], in the smallest integer type that can hold them.

        Args:
            meta: meta_info of the answer.
            num_tokens: number of tokens of prompt and response.

        Raises:
            ValueError, KeyError: the answer has no experts, or impossible ones.
        """
        shape = self._shape
        raw = np.frombuffer(base64.b64decode(meta["routed_experts"], validate=True), dtype=np.int32)
        dims = (num_tokens - 1, shape.num_layers, shape.num_experts_per_tok)
        if raw.size != dims[0] * dims[1] * dims[2]:
            raise ValueError(f"{raw.size} routed experts, {dims} are needed")
        experts = raw.reshape(dims)
        of_moe = np.sort(experts[:, self._moe_layers], axis=-1)
        if of_moe.size and not 0 <= of_moe.min() <= of_moe.max() < shape.num_experts:
            raise ValueError(f"routed experts outside [0, {shape.num_experts})")
        if (of_moe[..., 1:] == of_moe[..., :-1]).any():
            raise ValueError("routed experts name one twice for a token")
        # The entries of layers without experts are arbitrary: SGLang leaves its buffer uninitialized there.
        return torch.from_numpy(experts.astype(np.uint8 if shape.num_experts <= 256 else np.int16))
