"""Memory of log-probs and entropy is bounded for any vocabulary; bytes are counted, so the bound is exact."""

import pytest
import torch
import torch.distributed as dist

from benchmarks import logprobs
from megatron_prime.logprobs import output_layer as vocab_logprobs

SIZES = (64, 20000, 16)
"""Tokens, vocabulary, hidden size."""


@pytest.fixture(scope="module", autouse=True)
def group():
    started = not dist.is_initialized()
    if started:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    if started:
        dist.destroy_process_group()


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setitem(vocab_logprobs.TILE_ELEMENTS, "cpu", 2**15)
    monkeypatch.setattr(logprobs, "CHUNK_TOKENS", 32)


def beyond_gradients(method, sizes=SIZES):
    num_tokens, vocab_size, hidden_size = sizes
    return logprobs.count(method, *sizes).peak - 4 * hidden_size * (num_tokens + vocab_size)


def test_only_two_tiles_of_logits_exist_at_a_time():
    num_tokens, vocab_size, hidden_size = SIZES
    counted = logprobs.count("ours", *SIZES)
    tile, per_token = 4 * 2**15, 4 * num_tokens * (hidden_size + 20)
    assert counted.peak <= 4 * hidden_size * (num_tokens + vocab_size) + 3 * tile + 2 * per_token
    assert counted.largest == vocab_size * hidden_size, (
        "the gradient of the output layer is the largest tensor"
    )
    assert counted.largest < num_tokens * vocab_size


def test_memory_with_gradients_is_at_most_an_eighth_of_naive():
    assert logprobs.count("ours", *SIZES).peak <= logprobs.count("naive", *SIZES).peak / 8
    assert beyond_gradients("ours") <= beyond_gradients("naive") / 50


def test_memory_grows_neither_with_the_vocabulary_nor_with_the_tokens():
    num_tokens, vocab_size, hidden_size = SIZES
    wider = (num_tokens, 2 * vocab_size, hidden_size)
    assert beyond_gradients("ours", wider) == beyond_gradients("ours")
    longer = (2 * num_tokens, vocab_size, hidden_size)
    assert beyond_gradients("ours", longer) - beyond_gradients("ours") < 4 * 2 * num_tokens * (
        hidden_size + 20
    )
    assert beyond_gradients("naive", longer) > 1.9 * beyond_gradients("naive")


def test_naive_holds_whole_logits():
    counted = logprobs.count("naive", *SIZES)
    assert counted.largest == SIZES[0] * SIZES[1]
    assert counted.peak > 4 * counted.largest * 3


@pytest.mark.parametrize("method", logprobs.METHODS)
def test_every_method_gives_the_values_of_float64(method):
    assert max(logprobs.errors(method, 64, 3000, 16).values()) < 1e-6


def test_values_are_correct_with_a_large_vocabulary():
    found = logprobs.errors("ours", 16, 150_000, 16)
    assert set(found) == {"logprobs", "entropy", "grad_hidden", "grad_weight"}
    assert max(found.values()) < 1e-6


def test_scoring_alone_needs_no_gradient_buffers():
    hidden_RH, weight_VH, labels_R, _ = logprobs.inputs(*SIZES)
    with torch.no_grad(), logprobs.LiveBytes(known=[hidden_RH, weight_VH, labels_R]) as counted:
        logprobs.ours(hidden_RH, weight_VH, labels_R)
    assert counted.peak <= 3 * 4 * 2**15 + 4 * SIZES[0] * 20
