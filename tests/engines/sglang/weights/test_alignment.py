"""Aligned slices consist of whole blocks of rows, and other layouts are refused."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_prime.engines.sglang.weights.alignment import (
    check_aligned,
    is_aligned,
    misaligned_slices,
    num_blocks_of,
    scale_name,
)
from megatron_prime.resharding.layouts import EngineLayout, TrainingLayout
from megatron_prime.resharding.plan import plan_reshard
from tests.support.plan_shapes import LLAMA_70B, make_shape


@given(st.integers(0, 40), st.integers(1, 40), st.integers(0, 9), st.sampled_from([1, 4, 8]))
def test_a_slice_is_aligned_when_every_block_is_inside_or_outside(start, length, rest, block_size):
    size = start + length + rest
    rows = set(range(start, start + length))
    blocks = [set(range(first, min(first + block_size, size))) for first in range(0, size, block_size)]
    whole = all(block <= rows or not block & rows for block in blocks)
    assert is_aligned(start, length, size, block_size) == whole


def test_llama_70b_is_aligned_up_to_tp_8_and_refused_where_a_block_is_cut():
    training = TrainingLayout(tp=8, pp=4)
    check_aligned(plan_reshard(LLAMA_70B, training, EngineLayout.consecutive(1, 8)))
    narrow = dataclasses.replace(LLAMA_70B, head_dim=64)
    plan = plan_reshard(narrow, training, EngineLayout.consecutive(1, 8))
    assert set(misaligned_slices(plan)) == {
        f"model.layers.{{layer}}.self_attn.{name}_proj.weight" for name in ("k", "v")
    }
    with pytest.raises(
        ValueError,
        match=r"2 kinds of weights.*slice \[\d+, \d+\) of .*k_proj.weight cuts a block.*or send bf16",
    ):
        check_aligned(plan)


def test_embeddings_and_norms_need_no_alignment():
    plan = plan_reshard(make_shape(vocab_size=101), TrainingLayout(tp=2), EngineLayout.consecutive(1, 2))
    names = misaligned_slices(plan)
    assert not any("embed" in name or "norm" in name or "lm_head" in name for name in names)
    assert not misaligned_slices(plan, block_size=2)


def test_names_and_numbers_of_scales():
    assert scale_name("model.layers.0.mlp.up_proj.weight") == "model.layers.0.mlp.up_proj.weight_scale_inv"
    with pytest.raises(ValueError, match=r"q_proj\.bias is not the weight"):
        scale_name("model.layers.0.self_attn.q_proj.bias")
    assert [num_blocks_of(length) for length in (1, 128, 129)] == [1, 1, 2]
