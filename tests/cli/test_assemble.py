"""A run is built from the parts that its configuration names; the session's toy worker has built them."""

import pytest
import torch

from tests.support.toy_runs import Toy


@pytest.fixture
def parts(toy: Toy) -> dict:
    return toy.facts["parts"]


def test_sampling_follows_the_configuration_and_stops_at_the_models_eos(parts):
    sampling = parts["sampling"]
    assert (sampling.max_response_tokens, sampling.temperature, sampling.top_p) == (12, 1.0, 1.0)
    assert sampling.stop_token_ids == (14,)


def test_scoring_follows_the_configuration(parts):
    settings = parts["settings"]
    assert (settings.max_tokens_per_microbatch, settings.chunk_tokens, settings.temperature) == (
        512,
        1024,
        0.5,
    )
    assert settings.kernel == "auto"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_unsupported_kernels_are_refused_before_the_process_group_starts(parts):
    assert "trainer.logprob_kernel = 'triton', but this run is on CPUs" in parts["refused kernel"]


def test_the_configured_verifier_gets_the_text_of_the_response(parts):
    # Each digit is its own token id; the last digit before <eos> is the answer.
    assert len(parts["outcomes"]) == 10
    for answer, response_ids, outcome in parts["outcomes"]:
        ended = response_ids[-1] == 14
        text = [str(token) for token in response_ids[:-1]] if ended else None
        expected = float(bool(text) and text[-1] == answer)
        assert not ended or outcome == expected
