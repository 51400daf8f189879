"""A cache of keys and values with room for the tokens to come.

transformers' dynamic cache concatenates, which copies all keys and values at every token.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

ROOM_TOKENS = 128
"""Columns for which memory is allocated at once."""


class GrowingLayer(DynamicLayer):
    """A `DynamicLayer` whose tokens are written into buffers with up to ROOM_TOKENS unused columns.

    Its keys and values are views of the buffers. A method that puts other tensors in their place, as a selection of
    rows does, leaves the buffers behind; they are allocated again at the next token.
    """

    def __init__(self) -> None:
        super().__init__()
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> tuple[Tensor, Tensor]:
        """Append [B, heads, tokens, head_dim] of new tokens; return the keys and values of all tokens."""
        first = self.get_seq_length()
        if first == 0:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return key_states, value_states
        end = first + key_states.shape[-2]
        if not self._has_room(end):
            assert self.keys is not None and self.values is not None
            self._buffers = _with_room(self.keys, end), _with_room(self.values, end)
        assert self._buffers is not None
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, first:end] = states
        keys, values = (buffer[:, :, :end] for buffer in self._buffers)
        self.keys, self.values = keys, values
        return keys, values

    def reset(self) -> None:
        """Forget all tokens, and free their memory."""
        super().reset()
        self._buffers = None

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, as copies."""
        super().batch_select_indices(indices)
        self._buffers = None

    def _has_room(self, end: int) -> bool:
        if self._buffers is None or self.keys is None:
            return False
        buffer = self._buffers[0]
        return self.keys.data_ptr() == buffer.data_ptr() and end <= buffer.shape[-2]


def growing_cache(config: PreTrainedConfig | None = None) -> DynamicCache:
    """Return an empty cache, whose layers that keep all tokens are `GrowingLayer`s.

    Args:
        config: of the model; with None every layer keeps all tokens.
    """
    cache = DynamicCache() if config is None else DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if config is None:
        cache.layer_class_to_replicate = GrowingLayer
    return cache


def _with_room(states: Tensor, num_tokens: int) -> Tensor:
    """Return a buffer for at least num_tokens that begins with these states."""
    shape = (*states.shape[:2], num_tokens + ROOM_TOKENS, states.shape[-1])
    buffer = torch.empty(shape, dtype=states.dtype, device=states.device)
    buffer[:, :, : states.shape[-2]] = states
    return buffer
