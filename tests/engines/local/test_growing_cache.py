"""A cache with room holds what transformers' dynamic cache holds, without copying it at every token."""

import torch
from transformers import DynamicCache, Qwen3Config
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from megatron_prime.engines.local import growing_cache
from megatron_prime.engines.local.growing_cache import GrowingLayer


def random_states(num_rows, num_tokens, generator):
    return (torch.randn(num_rows, 2, num_tokens, 4, generator=generator) for _ in range(2))


def test_it_holds_what_a_dynamic_layer_holds(monkeypatch):
    monkeypatch.setattr(growing_cache, "ROOM_TOKENS", 3)
    generator = torch.Generator().manual_seed(0)
    ours, reference, num_rows = GrowingLayer(), DynamicLayer(), 4
    steps = (7, 1, 1, 5, 1, [2, 0, 2], 1, 1, 1, 1, [1], 1, 6)
    for step in steps:
        if isinstance(step, list):
            num_rows = len(step)
            for layer in (ours, reference):
                layer.batch_select_indices(torch.tensor(step))
        else:
            keys, values = random_states(num_rows, step, generator)
            found, wanted = ours.update(keys, values), reference.update(keys, values)
            assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
        assert torch.equal(ours.keys, reference.keys) and torch.equal(ours.values, reference.values)
        assert ours.get_seq_length() == reference.get_seq_length()


def test_tokens_are_written_in_place_until_there_is_no_room():
    generator = torch.Generator().manual_seed(0)
    layer, places = GrowingLayer(), []
    layer.update(*random_states(2, 5, generator))
    for _ in range(2 * growing_cache.ROOM_TOKENS):
        layer.update(*random_states(2, 1, generator))
        places.append(layer.keys.data_ptr())
    assert len(set(places)) == 2


def test_selected_rows_do_not_share_the_memory_of_others():
    generator = torch.Generator().manual_seed(0)
    layer = GrowingLayer()
    for num_tokens in (5, 1):
        layer.update(*random_states(2, num_tokens, generator))
    kept = layer.keys.clone()
    other = GrowingLayer()
    other.__dict__.update(layer.__dict__)
    other.batch_select_indices(torch.tensor([1]))
    other.update(*random_states(1, 1, generator))
    assert torch.equal(layer.keys, kept)


def test_a_layer_that_was_reset_begins_anew():
    layer = GrowingLayer()
    for num_tokens in (5, 1):
        layer.update(*random_states(2, num_tokens, torch.Generator()))
    layer.reset()
    layer.update(*random_states(3, 2, torch.Generator()))
    assert layer.keys.shape == (3, 2, 2, 4)


def test_layers_that_keep_a_window_are_left_as_they_are():
    config = Qwen3Config(num_hidden_layers=2, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    kinds = [type(layer) for layer in growing_cache.growing_cache(config).layers]
    assert kinds == [GrowingLayer, DynamicSlidingWindowLayer]
    assert [type(layer) for layer in DynamicCache(config=config).layers] == [DynamicLayer, kinds[1]]
