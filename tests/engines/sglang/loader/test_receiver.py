"""The receiver survives instructions that it can't follow. Whole syncs: tests/engines/sglang/weights."""

import json

import torch

from megatron_prime.engines.sglang.loader.receiver import receive
from tests.engines.sglang.loader.sglang_layout import FusedModel


def test_instructions_that_can_not_be_read_or_followed_never_raise(capfd):
    model = FusedModel(hidden=4, query=6, kv=2, ffn=3, vocab=10, padded_vocab=12, num_experts=4, ep_rank=1)
    for instructions in ("{", json.dumps({"protocol": -1})):
        receive(model, [(instructions, torch.empty(0))])
    output = capfd.readouterr().out
    assert output.count("weight sync: no trainer reached") == 2
    assert "protocol -1, this receiver 5" in output
