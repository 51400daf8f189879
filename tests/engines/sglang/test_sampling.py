"""Requests to servers are complete, and wrong answers are refused."""

import pytest
import torch

from megatron_prime.engines.requests import ModelLimits, StreamKey
from megatron_prime.engines.sglang.routing import RoutingReader
from megatron_prime.engines.sglang.sampling import (
    check_stop_tokens,
    parse_completion,
    request_body,
    seed_of,
)
from megatron_prime.rollout.engine import EngineError
from megatron_prime.types import FinishReason, SamplingParams


def test_stop_tokens_outside_of_the_vocabulary_are_refused():
    limits = ModelLimits(vocab_size=100, max_positions=20)
    check_stop_tokens(SamplingParams(5, stop_token_ids=(0, 99)), limits)
    with pytest.raises(ValueError, match="stop_token_ids"):
        check_stop_tokens(SamplingParams(5, stop_token_ids=(100,)), limits)


def test_the_body_holds_every_parameter():
    params = SamplingParams(8, temperature=0.5, top_p=0.9, stop_token_ids=(3, 4))
    body = request_body((1, 2), 5, params, "id", seed=9)
    assert body == {
        "rid": "id",
        "input_ids": [1, 2],
        "sampling_params": {
            "max_new_tokens": 5,
            "temperature": 0.5,
            "top_p": 0.9,
            "stop_token_ids": [3, 4],
            "top_k": -1,
            "min_p": 0.0,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
            "repetition_penalty": 1.0,
            "min_new_tokens": 0,
            "sampling_seed": 9,
        },
        "return_logprob": True,
    }
    assert "sampling_seed" not in request_body((1,), 5, params, "id")["sampling_params"]


def test_seeds_differ_by_every_part_of_the_key():
    keys = [
        StreamKey(*parts) for parts in ((0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))
    ]
    seeds = [seed_of(key) for key in keys]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 1 << 31 for seed in seeds)
    assert seed_of(keys[0]) == seeds[0]


def answer(**changes):
    meta = {
        "finish_reason": {"type": "stop", "matched": 7},
        "weight_version": "4",
        "output_token_logprobs": [[-0.5, 5, None], [-1.5, 7, None]],
        "weight_versions": [{"version": "4", "start": 0, "end": 2}],
    }
    return {"output_ids": [5, 7], "meta_info": meta | changes}


def test_an_answer_becomes_a_turn():
    turn = parse_completion(answer(), int)
    assert (turn.token_ids, turn.logprobs) == ((5, 7), (-0.5, -1.5))
    assert turn.version_spans == ((4, 0, 2),)
    assert turn.finish_reason is FinishReason.STOP


class EveryToken(RoutingReader):
    """One number a token."""

    def __init__(self): ...

    def read(self, meta, num_tokens):
        if "routed_experts" not in meta:
            raise KeyError("routed_experts")
        return torch.arange(num_tokens - 1)


def test_routing_is_asked_for_and_kept_for_prompt_and_response():
    ids, params = (1, 2, 3), SamplingParams(5)
    assert request_body(ids, 5, params, "id", return_routing=True)["return_routed_experts"] is True
    assert "return_routed_experts" not in request_body(ids, 5, params, "id")
    turn = parse_completion(answer(routed_experts="..."), int, 3, EveryToken())
    assert turn.routed_experts is not None and turn.routed_experts.tolist() == [0, 1, 2, 3]
    assert parse_completion(answer(), int).routed_experts is None
    with pytest.raises(EngineError, match="is incomplete"):
        parse_completion(answer(), int, 3, EveryToken())


def test_an_answer_of_two_versions_says_which_sampled_which_token():
    spans = [{"version": "4", "start": 0, "end": 1}, {"version": "5", "start": 1, "end": 2}]
    turn = parse_completion(answer(weight_versions=spans), int)
    assert turn.version_spans == ((4, 0, 1), (5, 1, 2))
    assert turn.versions == {4, 5}


def test_without_spans_the_one_version_counts():
    assert parse_completion(answer(weight_versions=None), int).version_spans == ((4, 0, 2),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_token_logprobs": None}, "log-probs belong to other tokens"),
        ({"output_token_logprobs": [[-0.5, 5, None], [-1.5, 6, None]]}, "log-probs belong to other tokens"),
        ({"output_token_logprobs": [[-0.5, 5, None], [float("nan"), 7, None]]}, "weights are broken"),
        ({"output_token_logprobs": [[None, 5, None], [-1.5, 7, None]]}, "is incomplete"),
        ({"finish_reason": {"type": "bored"}}, "unknown reason"),
        ({"finish_reason": None}, "is incomplete"),
        ({"weight_versions": [{"version": "4", "start": 1, "end": 2}]}, "don't add up"),
        ({"weight_versions": [{"version": "4", "start": 0, "end": 1}]}, "don't add up"),
    ],
)
def test_a_wrong_answer_is_refused(changes, message):
    with pytest.raises(EngineError, match=message):
        parse_completion(answer(**changes), int)
