"""Block FP8 equals a plain loop over blocks, slices equal the whole, and the error is within its bound."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_prime.engines.sglang.weights.alignment import check_aligned
from megatron_prime.engines.sglang.weights.quantize import quantize_blocks, quantize_slice
from megatron_prime.hf.mapping import hf_tensors
from megatron_prime.resharding.layouts import EngineLayout, TrainingLayout
from megatron_prime.resharding.plan import plan_reshard
from tests.support.plan_shapes import make_moe_shape


def plain_loop(weight, block_size):
    num_rows, num_columns = weight.shape
    quantized = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    scales = torch.empty(-(-num_rows // block_size), -(-num_columns // block_size))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            window = (
                slice(i * block_size, (i + 1) * block_size),
                slice(j * block_size, (j + 1) * block_size),
            )
            block = weight[window].float()
            scales[i, j] = max(block.abs().max().item(), 2.0**-100) / 448
            quantized[window] = (block / scales[i, j]).to(torch.float8_e4m3fn)
    return quantized, scales


def dequantize_blocks(blocks, block_size=128):
    """Return the matrix in float32."""
    num_rows, num_columns = blocks.weight.shape
    scales = blocks.scale_inv.repeat_interleave(block_size, 0).repeat_interleave(block_size, 1)
    return blocks.weight.float() * scales[:num_rows, :num_columns]


def assert_same(blocks, expected):
    assert torch.equal(blocks.weight.view(torch.uint8), expected[0].view(torch.uint8))
    assert torch.equal(blocks.scale_inv, expected[1])


@settings(max_examples=40, deadline=None)
@given(
    num_rows=st.integers(1, 40),
    num_columns=st.integers(1, 40),
    block_size=st.sampled_from([4, 8, 16]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    magnitude=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]),
    seed=st.integers(0, 99),
)
def test_blocks_are_those_of_a_plain_loop(num_rows, num_columns, block_size, dtype, magnitude, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(num_rows, num_columns, generator=generator) * magnitude).to(dtype)
    blocks = quantize_blocks(weight, block_size)
    assert_same(blocks, plain_loop(weight, block_size))
    scales = blocks.scale_inv.repeat_interleave(block_size, 0).repeat_interleave(block_size, 1)
    bound = torch.maximum(weight.float().abs() / 16, scales[:num_rows, :num_columns] / 1024) * (1 + 1e-6)
    assert ((dequantize_blocks(blocks, block_size=block_size) - weight.float()).abs() <= bound).all()
    assert torch.isfinite(blocks.weight.float()).all()


def test_blocks_of_128():
    weight = torch.randn(300, 257, generator=torch.Generator().manual_seed(0)).bfloat16()
    blocks = quantize_blocks(weight)
    assert blocks.scale_inv.shape == (3, 3) and blocks.scale_inv.dtype == torch.float32
    assert_same(blocks, plain_loop(weight, 128))


def test_a_block_of_zeros_stays_zero():
    blocks = quantize_blocks(torch.zeros(8, 8), 4)
    assert dequantize_blocks(blocks, block_size=4).count_nonzero() == 0
    assert (blocks.scale_inv > 0).all()


@pytest.mark.parametrize("engine", [(1, 1), (2, 1), (4, 2)])
def test_quantized_slices_of_a_plan_make_up_the_quantized_tensor(engine):
    """Every transfer of a mixture, quantized by its sender alone, is that part of the quantized HF tensor."""
    block = 4
    shape = make_moe_shape(hidden_size=10, head_dim=4, moe_ffn_hidden_size=32, dense_layers=(1,))
    shape = dataclasses.replace(shape, ffn_hidden_size=48)
    plan = plan_reshard(
        shape,
        TrainingLayout(tp=2, ep=2, etp=2, dp=2),
        EngineLayout.consecutive(1, engine[0], ep=engine[1], first_rank=4),
    )
    check_aligned(plan, block)
    generator = torch.Generator().manual_seed(0)
    whole = {name: torch.randn(dims, generator=generator) for name, dims in hf_tensors(shape).items()}
    num_checked = 0
    for t in plan.transfers:
        if "_proj.weight" not in t.hf_name:
            continue
        padding = torch.randn_like(whole[t.hf_name]).narrow(t.dim, 0, 1)
        sent = whole[t.hf_name].narrow(t.dim, t.hf_start, t.length)
        parameter = torch.cat([padding] * t.source_local_start + [sent, padding], dim=t.dim)
        blocks = quantize_slice(
            parameter,
            dim=t.dim,
            local_start=t.source_local_start,
            length=t.length,
            hf_start=t.hf_start,
            hf_size=whole[t.hf_name].shape[t.dim],
            block_size=block,
        )
        weight, scales = quantize_blocks(whole[t.hf_name], block)
        part = weight.view(torch.uint8).narrow(t.dim, t.hf_start, t.length)
        assert torch.equal(blocks.weight.view(torch.uint8), part)
        first, count = t.hf_start // block, -(-t.length // block)
        assert torch.equal(blocks.scale_inv, scales.narrow(t.dim, first, count))
        num_checked += 1
    assert num_checked > 100


def test_a_slice_that_cuts_a_block_is_refused():
    where = {"dim": 0, "local_start": 0, "length": 96, "hf_size": 512}
    with pytest.raises(ValueError, match=r"\[64, 160\) of 512 cuts a block of 128"):
        quantize_slice(torch.zeros(96, 8), hf_start=64, **where)


def test_only_matrices_have_blocks():
    with pytest.raises(ValueError, match=r"only matrices.*\(3,\)"):
        quantize_blocks(torch.zeros(3))
