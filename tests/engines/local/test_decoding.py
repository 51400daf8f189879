"""Decoding saves work: prompts are prefilled once, and finished rows leave the batch."""

import numpy as np
import pytest

from megatron_prime.engines.local.decoding import Request, decode_batch
from megatron_prime.engines.local.kept_cache import KeptCache
from megatron_prime.engines.requests import StreamKey
from megatron_prime.types import SamplingParams
from tests.support.tiny_models import ragged_sequences, tiny_model


def shapes_of(model):
    """Return a list that gets the shape of the input of every forward pass."""
    shapes = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return shapes


def test_each_prompt_is_prefilled_once_and_finished_rows_leave():
    model = tiny_model("qwen2")
    shapes = shapes_of(model)
    prompts = [tuple(ids) for ids, _ in ragged_sequences()]
    requests = [
        Request(prompt, StreamKey(0, 0, place, sample), 60)
        for sample in range(4)
        for place, prompt in enumerate(prompts)
    ]
    # A twentieth of the vocabulary stops: rows finish at all times.
    params = SamplingParams(60, stop_token_ids=tuple(range(0, 300, 20)))
    turns = decode_batch(model, requests, params)

    assert shapes[0] == (5, 7)
    assert shapes[1] == (20, 1)
    lengths = sorted((len(turn.token_ids) for turn in turns), reverse=True)
    assert len(shapes) == lengths[0]
    rows = [num_rows for num_rows, _ in shapes[1:]]
    assert rows == sorted(rows, reverse=True)
    for step, num_rows in enumerate(rows, start=1):
        num_unfinished = sum(length > step for length in lengths)
        assert num_unfinished <= num_rows <= max(num_unfinished / 0.75, 1)


@pytest.mark.parametrize("name", ["qwen3", "llama rope", "qwen3 moe"])
def test_turns_that_continue_compute_new_tokens_alone_and_equal_those_from_the_beginning(name):
    model = tiny_model(name)
    shapes = shapes_of(model)
    params = SamplingParams(60, stop_token_ids=tuple(range(0, 300, 7)))
    requests = [
        Request(tuple(ids), StreamKey(0, 0, place, 0), 12)
        for place, (ids, _) in enumerate(ragged_sequences())
    ]
    kept = KeptCache()
    for turn in range(4):
        shapes.clear()
        turns = decode_batch(model, requests, params, kept)
        # A turn computes at most its last token and the five of the longest reply, and what has joined as a whole.
        assert turn == 0 or shapes[0][1] <= 6
        assert ((1, 3) in shapes) == (turn == 1)
        wanted = decode_batch(model, requests, params)
        for got, expected in zip(turns, wanted, strict=True):
            assert got.token_ids == expected.token_ids and got.finish_reason is expected.finish_reason
            np.testing.assert_allclose(got.logprobs, expected.logprobs, atol=2e-6)
        requests = [
            Request(
                (*request.input_ids, *done.token_ids, *range(1 + row)), request.key, 12, request.offset + 12
            )
            for row, (request, done) in enumerate(zip(requests, turns, strict=True))
        ]
        # One response ends, and another one begins.
        requests = requests[1:] if turn else [*requests[1:], Request((5, 6, 7), StreamKey(0, 0, 99, 0), 12)]
