"""Sampled frequencies against exact probabilities, and the edges of the nucleus."""

import math

import pytest
import torch

from megatron_prime.engines.local.sampling import invert_cdf, nucleus, sample_tokens
from megatron_prime.engines.requests import StreamKey


def assert_frequencies(tokens, probs):
    """Pearson's statistic within five standard deviations of its mean."""
    counts = torch.bincount(tokens, minlength=len(probs)).double()
    expected = probs * len(tokens)
    assert counts[probs == 0].sum() == 0
    cells = expected >= 5
    statistic = ((counts - expected)[cells] ** 2 / expected[cells]).sum().item()
    dof = int(cells.sum()) - 1
    assert statistic < dof + 5 * math.sqrt(2 * dof)


def uniforms(num_rows, seed=0):
    return torch.from_numpy(StreamKey(seed, 1, 2, 3).uniforms(num_rows))


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.7)])
def test_frequencies_match_probabilities(temperature, top_p):
    logits = torch.randn(12, generator=torch.Generator().manual_seed(3)) * 2
    num_draws = 40_000
    tokens, logprobs = sample_tokens(logits.expand(num_draws, -1), uniforms(num_draws), temperature, top_p)
    exact = (logits.double() / temperature).softmax(-1)
    wanted = exact.clone()
    order = sorted(range(12), key=lambda token: -exact[token])
    mass = 0.0
    for token in order:
        if mass >= top_p:
            wanted[token] = 0
        mass += exact[token].item()
    assert_frequencies(tokens, wanted / wanted.sum())
    # Log-probabilities are those of the whole distribution, whatever the nucleus.
    torch.testing.assert_close(logprobs.double(), exact.log()[tokens], atol=1e-6, rtol=0)


def test_greedy_takes_the_maximum_with_logprobs_at_temperature_one():
    logits = torch.randn(50, 30)
    tokens, logprobs = sample_tokens(logits, uniforms(50), 0.0, 1.0)
    assert torch.equal(tokens, logits.argmax(-1))
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).amax(-1))


def test_a_tiny_nucleus_keeps_only_the_most_likely_token():
    logits = torch.randn(200, 30)
    tokens, _ = sample_tokens(logits, uniforms(200), 1.0, 1e-9)
    assert torch.equal(tokens, logits.argmax(-1))


def test_nucleus_is_the_smallest_set_that_reaches_the_mass():
    probs = torch.tensor([[0.125, 0.5, 0.125, 0.25]], dtype=torch.float64)
    assert nucleus(probs, 0.5).tolist() == [[0, 0.5, 0, 0]]
    assert nucleus(probs, 0.5 + 1e-9).tolist() == [[0, 0.5, 0, 0.25]]
    assert nucleus(probs, 0.8).tolist() == [[0.125, 0.5, 0, 0.25]]
    assert nucleus(probs, 1.0) is probs


def test_a_token_of_probability_zero_is_never_drawn():
    weights = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]], dtype=torch.float64).expand(4, -1)
    edges = torch.tensor([0.0, 0.3, 1 - 2**-53, 0.29999], dtype=torch.float64)
    assert invert_cdf(weights, edges).tolist() == [1, 3, 3, 1]
    logits = torch.full((64, 50_000), -math.inf)
    logits[:, 777] = 0.0
    tokens, logprobs = sample_tokens(logits, uniforms(64), 1.0, 1.0)
    assert (tokens == 777).all()
    assert (logprobs == 0).all()


def test_rows_do_not_depend_on_the_batch():
    logits = torch.randn(64, 500)
    draws = uniforms(64)
    whole, _ = sample_tokens(logits, draws, 0.8, 0.9)
    alone = [sample_tokens(logits[row : row + 1], draws[row : row + 1], 0.8, 0.9)[0] for row in range(64)]
    assert torch.equal(whole, torch.cat(alone))
