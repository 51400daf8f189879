"""Reports add up, and slices are encoded as they are sent."""

import torch

from megatron_prime.engines.sglang.loader.wire import checksum
from megatron_prime.engines.sglang.weights.bucketed_plan import BucketedPlan
from megatron_prime.engines.sglang.weights.quantize import quantize_blocks
from megatron_prime.engines.sglang.weights.sender import EncodedSlice, SendReport, slice_key
from megatron_prime.resharding.layouts import EngineLayout, TrainingLayout
from megatron_prime.resharding.plan import plan_reshard
from tests.support.plan_shapes import make_shape

WIDE = {
    "hidden_size": 128,
    "ffn_hidden_size": 256,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "head_dim": 128,
}


def transfers(is_quantized):
    reshard = plan_reshard(make_shape(**WIDE), TrainingLayout(), EngineLayout.consecutive(2, 1, first_rank=1))
    plan = BucketedPlan(reshard, 10**7, "bfloat16", is_quantized=is_quantized)
    return plan, [t for t in reshard.sent_by(0) if t.hf_name.endswith("down_proj.weight")]


def test_digests_are_sums_modulo_two_to_the_64():
    report = SendReport()
    report.add((0, 1), [5, -1])
    report.add((0, 1), [2**63, 3])
    report.add((1, 0), [0, 1])
    assert report.digests == {(0, 1): (2**63 + 5, 2), (1, 0): (0, 1)}


def test_a_slice_for_two_servers_has_one_key_and_is_sent_as_it_is():
    plan, (first, *others) = transfers(is_quantized=False)
    assert slice_key(first) in {slice_key(other) for other in others}
    tensor = torch.randn(128, 256)
    encoded = EncodedSlice.encode(first, tensor, plan)
    assert encoded.tensors == [tensor] and torch.equal(encoded.checksums[0], checksum(tensor))


def test_a_quantized_slice_is_values_and_scales():
    plan, (first, *_) = transfers(is_quantized=True)
    tensor = torch.randn(128, 256)
    encoded = EncodedSlice.encode(first, tensor, plan)
    for got, wanted in zip(encoded.tensors, quantize_blocks(tensor), strict=True):
        assert torch.equal(got.view(torch.uint8), wanted.view(torch.uint8))
    assert [c.tolist() for c in encoded.checksums] == [checksum(t).tolist() for t in encoded.tensors]
