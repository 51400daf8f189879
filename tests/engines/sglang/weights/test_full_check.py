"""SGLang's checksums by hand for a tiny model. Real servers answer the same in test_shard_sync.py."""

import hashlib

import torch

from megatron_prime.engines.sglang.weights.full_check import differing, expected_checksums
from megatron_prime.hf.mapping import hf_tensors
from megatron_prime.resharding.layouts import EngineLayout
from tests.support.plan_shapes import make_moe_shape, make_shape


def weights(shape):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(dims, generator=generator) for name, dims in hf_tensors(shape).items()}


def digest(*parts):
    return hashlib.sha256(torch.cat(parts).numpy().tobytes()).hexdigest()[:16]


def test_fused_and_padded_parameters_of_each_rank():
    tensors = weights(make_shape())
    first, second = expected_checksums(
        tensors, make_shape(), EngineLayout.consecutive(1, 2, vocab_divisor=64)
    )
    assert first.keys() == second.keys()
    at = "model.layers.2"
    q, k, v = (tensors[f"{at}.self_attn.{part}_proj.weight"] for part in "qkv")
    assert second[f"{at}.self_attn.qkv_proj.weight"] == digest(q[16:], k[8:], v[8:])
    gate, up = (tensors[f"{at}.mlp.{part}_proj.weight"] for part in ("gate", "up"))
    assert first[f"{at}.mlp.gate_up_proj.weight"] == digest(gate[:8], up[:8])
    down = tensors[f"{at}.mlp.down_proj.weight"]
    assert second[f"{at}.mlp.down_proj.weight"] == digest(down[:, 8:].contiguous())
    embedding = tensors["model.embed_tokens.weight"]  # 101 rows, padded to 128
    assert first["model.embed_tokens.weight"] == digest(embedding[:64])
    assert second["model.embed_tokens.weight"] == digest(embedding[64:], torch.zeros(27, 3))
    assert first["model.norm.weight"] == second["model.norm.weight"] == digest(tensors["model.norm.weight"])


def test_experts_are_stacked_on_the_ranks_that_hold_them():
    shape = make_moe_shape()
    tensors = weights(shape)
    _, second = expected_checksums(tensors, shape, EngineLayout.consecutive(1, 2, ep=2))
    at = "model.layers.0.mlp.experts"
    parts = [tensors[f"{at}.{e}.{leaf}_proj.weight"] for e in range(4, 8) for leaf in ("gate", "up")]
    assert second[f"{at}.w13_weight"] == digest(*parts)
    downs = [tensors[f"{at}.{e}.down_proj.weight"] for e in range(4, 8)]
    assert second[f"{at}.w2_weight"] == digest(*downs)


def test_parameters_that_differ_are_missing_or_unexpected_are_listed():
    assert differing({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "0", "d": "4"}) == ["b", "c", "d"]
