"""Decoding saves work: prompts are prefilled once, and finished rows leave the batch."""

from megatron_prime.engines.local.decoding import Request, decode_batch
from megatron_prime.engines.requests import StreamKey
from megatron_prime.types import SamplingParams
from tests.support.tiny_models import ragged_sequences, tiny_model


def test_each_prompt_is_prefilled_once_and_finished_rows_leave():
    model = tiny_model("qwen2")
    shapes = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
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
