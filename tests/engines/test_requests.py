"""Random streams belong to responses, and requests that the model can't serve are refused."""

import json
import math

import numpy as np
import pytest

from megatron_prime.engines.requests import ModelLimits, StreamKey, check_prompt, check_sampling
from megatron_prime.types import Prompt, SamplingParams
from tests.support.hf_shapes import make_config

LIMITS = ModelLimits(vocab_size=100, max_positions=20, num_reserved=2)
GOOD = {"max_response_tokens": 5}


def test_streams_are_keyed_and_a_longer_one_extends_a_shorter():
    key = StreamKey(1, 2, 3, 4)
    assert np.array_equal(key.uniforms(5), key.uniforms(300)[:5])
    others = [StreamKey(0, 2, 3, 4), StreamKey(1, 0, 3, 4), StreamKey(1, 2, 0, 4), StreamKey(1, 2, 3, 0)]
    # Keys whose words join to the same sequence are still different streams.
    others += [key.next_attempt(), key.next_attempt().next_attempt(), StreamKey(1, 2, 3, 4 + 4096)]
    others += [StreamKey(1, 2, 4, 3), StreamKey(0, 1 << 32, 5, 0), StreamKey(0, 0, 1 + (5 << 32), 0)]
    streams = {tuple(each.uniforms(4)) for each in [key, *others]}
    assert len(streams) == 1 + len(others)
    draws = np.concatenate([StreamKey(0, 0, prompt, 0).uniforms(4) for prompt in range(2000)])
    assert draws.min() >= 0 and draws.max() < 1
    assert abs(draws.mean() - 0.5) < 5 / math.sqrt(12 * len(draws))


@pytest.mark.parametrize(
    ("params", "group_size", "stream_key", "word"),
    [
        (SamplingParams(0), 1, 0, "max_response_tokens"),
        (SamplingParams(1, temperature=-1), 1, 0, "temperature"),
        (SamplingParams(1, temperature=math.nan), 1, 0, "temperature"),
        (SamplingParams(1, top_p=0), 1, 0, "top_p"),
        (SamplingParams(1, max_turns=0), 1, 0, "max_turns"),
        (SamplingParams(1, max_turn_tokens=0), 1, 0, "max_turn_tokens"),
        (SamplingParams(1), 0, 0, "group_size"),
        (SamplingParams(1), 1, -1, "stream_key"),
    ],
)
def test_invalid_arguments_are_refused(params, group_size, stream_key, word):
    with pytest.raises(ValueError, match=word):
        check_sampling(params, group_size, stream_key)


@pytest.mark.parametrize(
    ("token_ids", "params", "message"),
    [
        ((), GOOD, "no tokens"),
        ((1, 100), GOOD, "outside the model's vocabulary of 100"),
        ((1, -1), GOOD, "outside the model's vocabulary"),
        (
            (1,) * 14,
            GOOD,
            "exceeds the model's max_position_embeddings = 20, of which the engine reserves 2: lower",
        ),
    ],
)
def test_prompts_that_the_model_cant_serve_are_refused(token_ids, params, message):
    with pytest.raises(ValueError, match=message):
        check_prompt(Prompt(0, token_ids, ""), SamplingParams(**params), LIMITS)


def test_requests_up_to_the_limits_pass():
    check_sampling(SamplingParams(16, temperature=0), 1, 0)
    check_prompt(Prompt(0, (0, 99), ""), SamplingParams(16), LIMITS)
    check_prompt(Prompt(0, (0,) * 500, ""), SamplingParams(18), ModelLimits(1, None))


def test_limits_come_from_the_config(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        ModelLimits.of(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps(make_config("llama", vocab_size=5, max_position_embeddings=9))
    )
    assert ModelLimits.of(tmp_path, 2) == ModelLimits(5, 9, 2)
