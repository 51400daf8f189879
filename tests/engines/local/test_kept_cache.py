import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from megatron_prime.engines.local.kept_cache import KeptCache
from megatron_prime.engines.requests import StreamKey

KEYS = [StreamKey(0, 0, place, 0) for place in range(6)]


def cache_of(masks, first):
    """Two layers whose keys and values say which row and column they belong to."""
    cache = DynamicCache()
    for layer in range(2):
        places = first * 100 + torch.arange(masks.numel()).reshape(masks.shape) + 0.5 * layer
        keys = places[:, None, :, None].expand(-1, 2, -1, 3).contiguous()
        cache.update(keys, -keys, layer)
    return cache


def test_rows_of_several_parts_are_joined_without_their_gaps():
    generator = torch.Generator().manual_seed(0)
    kept, rows = KeptCache(), {}
    # Parts of different widths: the longest row of one is longer than another part has columns.
    for first, (num_rows, width) in zip((0, 2, 5), ((2, 9), (3, 4), (1, 6)), strict=True):
        masks = (torch.rand(num_rows, width, generator=generator) < 0.6).long()
        masks[:, 0] = 1
        keys = KEYS[first : first + num_rows]
        cache = cache_of(masks, first)
        rows |= {key: cache.layers[0].keys[row, 0, masks[row] == 1, 0] for row, key in enumerate(keys)}
        kept.add(keys, cache, masks)
    assert kept.keys == KEYS

    chosen = [KEYS[0], KEYS[2], KEYS[4], KEYS[5]]
    joined, mask_BN = kept.take(chosen)
    longest = max(len(rows[key]) for key in chosen)
    assert mask_BN.shape == (4, longest) and kept.keys == []
    for row, key in enumerate(chosen):
        assert mask_BN[row].tolist() == [0] * (longest - len(rows[key])) + [1] * len(rows[key])
        for layer in range(2):
            wanted = (rows[key] + 0.5 * layer)[None, :, None].expand(2, -1, 3)
            assert torch.equal(joined.layers[layer].keys[row, :, mask_BN[row] == 1], wanted)
            assert torch.equal(joined.layers[layer].values[row, :, mask_BN[row] == 1], -wanted)


def test_rows_that_nobody_continues_are_forgotten():
    kept = KeptCache()
    mask_BL = torch.ones(1, 3, dtype=torch.int64)
    kept.add(KEYS[:1], cache_of(mask_BL, 0), mask_BL)
    kept.take([])
    assert kept.keys == []


def test_layers_that_forget_columns_are_not_kept():
    kept, cache = KeptCache(), DynamicCache()
    cache.layers = [DynamicSlidingWindowLayer(4)]
    kept.add(KEYS[:1], cache, torch.ones(1, 3, dtype=torch.int64))
    assert kept.keys == []
