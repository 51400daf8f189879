"""Keys and values of responses that wait for their environments, so that a turn computes the tokens since the last one.

A part holds the rows of a batch that left decoding together. Their columns may have gaps, from padding and from rows
that finished early; `take` joins the parts and closes the gaps, so that rows are left-padded, as after a prefill.

Shapes: B rows of a part, L columns of its cache, N columns of the longest row without gaps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from megatron_prime.engines.local.growing_cache import growing_cache
from megatron_prime.engines.requests import StreamKey


@dataclass(slots=True)
class _Part:
    keys: list[StreamKey]
    cache: DynamicCache
    mask_BL: Tensor
    """1 for the columns that hold a token of the row."""


class KeptCache:
    """The rows of the responses of a call, named by their streams: under one, a response only grows."""

    def __init__(self) -> None:
        self._parts: list[_Part] = []

    @property
    def keys(self) -> list[StreamKey]:
        """The streams of the rows, in the order in which `take` returns them."""
        return [key for part in self._parts for key in part.keys]

    def add(self, keys: Sequence[StreamKey], cache: DynamicCache, mask_BL: Tensor) -> None:
        """Keep rows of a cache, which is not used any more. Does nothing for layers that keep a window only."""
        if all(isinstance(layer, DynamicLayer) and not layer.is_sliding for layer in cache.layers):
            self._parts.append(_Part(list(keys), cache, mask_BL))

    def take(self, keys: Sequence[StreamKey]) -> tuple[DynamicCache, Tensor]:
        """Return the rows of these streams, left-padded, and the mask of their columns. Forget all others.

        Memory: a second copy of one layer.

        Args:
            keys: some of `keys`, in that order.
        """
        wanted = set(keys)
        parts, self._parts = self._parts, []
        rows = [[row for row, key in enumerate(part.keys) if key in wanted] for part in parts]
        chosen = [
            (part, torch.tensor(each, device=part.mask_BL.device))
            for part, each in zip(parts, rows, strict=True)
            if each
        ]
        joined = growing_cache()
        if not chosen:
            return joined, torch.zeros((0, 0), dtype=torch.int64)
        lengths_B = torch.cat([part.mask_BL[rows_B].sum(dim=1) for part, rows_B in chosen])
        longest = int(lengths_B.max())
        columns = [_columns(part.mask_BL[rows_B], longest) for part, rows_B in chosen]
        for layer in range(len(parts[0].cache.layers)):
            found = [
                _gathered(part, layer, rows_B, columns_BN)
                for (part, rows_B), columns_BN in zip(chosen, columns, strict=True)
            ]
            joined.update(
                torch.cat([each for each, _ in found]), torch.cat([each for _, each in found]), layer
            )
        places_N = torch.arange(longest, device=lengths_B.device)
        return joined, (places_N >= longest - lengths_B[:, None]).long()


def _columns(mask_BL: Tensor, longest: int) -> Tensor:
    """Return [B, N]: the columns of each row that hold a token, in order, behind any others."""
    order_BL = mask_BL.argsort(dim=1, stable=True)
    missing = longest - order_BL.shape[1]
    # A part may be narrower than the longest row of another one: its first column then stands for padding.
    return torch.nn.functional.pad(order_BL, (missing, 0)) if missing > 0 else order_BL[:, -longest:]


def _gathered(part: _Part, number: int, rows_B: Tensor, columns_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Return the keys and values of a layer in rows and columns, and free those of the part."""
    layer = part.cache.layers[number]
    assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
    found = layer.keys, layer.values
    layer.reset()
    keys, values = (each[rows_B[:, None], :, columns_BN].transpose(1, 2) for each in found)
    return keys, values
