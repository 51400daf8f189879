"""Attention and norm equal their definitions in float64."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_prime.models.layers import PackedAttention, RMSNorm

HEAD_DIM = 6
ALONE = ProcessGroupCollection(
    cp=dist.ProcessGroupGloo(
        dist.HashStore(), 0, 1, timedelta(seconds=60)
    )  # test_forward.py tests larger groups
)


def make_config(**changes):
    return TransformerConfig(num_layers=1, hidden_size=24, num_attention_heads=4, **changes)


def make_attention(**options):
    return PackedAttention(
        make_config(),
        layer_number=1,
        attn_mask_type=AttnMaskType.causal,
        attention_type="self",
        pg_collection=ALONE,
        **options,
    )


def draw(num_tokens, num_heads, num_kv_heads, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(num_tokens, heads, HEAD_DIM, dtype=torch.float64, generator=generator).requires_grad_()
        for heads in (num_heads, num_kv_heads, num_kv_heads)
    ]


def packed(lengths):
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return PackedSeqParams(qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds)


def naive_attention(query_SND, key_SKD, value_SKD, lengths, scale):
    """Compute attention per token and head: softmax over the tokens of its sequence up to itself."""
    outputs, start = [], 0
    group = query_SND.shape[1] // key_SKD.shape[1]
    for length in lengths:
        for token in range(start, start + length):
            heads = []
            for head in range(query_SND.shape[1]):
                keys = key_SKD[start : token + 1, head // group]
                weights = torch.softmax(keys @ query_SND[token, head] * scale, dim=0)
                heads.append(weights @ value_SKD[start : token + 1, head // group])
            outputs.append(torch.cat(heads))
        start += length
    return torch.stack(outputs)


@pytest.mark.parametrize("lengths", [[5], [4, 4, 4], [3, 1, 7, 3, 1], [2, 0, 3], [1, 1]], ids=str)
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (6, 1)])
def test_attention_and_its_gradients_equal_the_definition(lengths, num_heads, num_kv_heads):
    mine, theirs = draw(sum(lengths), num_heads, num_kv_heads), draw(sum(lengths), num_heads, num_kv_heads)
    out = make_attention()(*mine, packed_seq_params=packed(lengths))
    expected = naive_attention(*theirs, lengths, HEAD_DIM**-0.5)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)
    upstream = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    out.backward(upstream)
    expected.backward(upstream)
    for ours, reference in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours.grad, reference.grad, rtol=0, atol=1e-12)


def test_attention_uses_the_given_softmax_scale():
    mine = draw(5, 4, 2)
    out = make_attention(softmax_scale=0.9)(*mine, packed_seq_params=packed([2, 3]))
    torch.testing.assert_close(out, naive_attention(*mine, [2, 3], 0.9), rtol=0, atol=1e-13)


def test_a_sequence_does_not_attend_to_its_neighbours():
    first, second = draw(7, 4, 2), draw(7, 4, 2, seed=1)
    mixed = [torch.cat([one[:4], other[4:]]) for one, other in zip(first, second, strict=True)]
    attention = make_attention()
    alone = attention(*first, packed_seq_params=packed([4, 3]))
    beside_others = attention(*mixed, packed_seq_params=packed([4, 3]))
    assert torch.equal(alone[:4], beside_others[:4])


def test_attention_refuses_masks_that_it_does_not_support():
    with pytest.raises(AssertionError, match="packed"):
        make_attention()(*draw(4, 4, 4))
    with pytest.raises(AssertionError):
        PackedAttention(make_config(), 1, AttnMaskType.padding, "self", pg_collection=ALONE)


@pytest.mark.parametrize("shape", [(24,), (7, 24), (3, 1, 24)])
def test_rms_norm_and_its_gradients_equal_the_formula(shape):
    norm = RMSNorm(make_config(), hidden_size=24, eps=1e-3).double()
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, dtype=torch.float64, generator=generator)
    hidden = torch.randn(shape, dtype=torch.float64, generator=generator) * 0.05  # small, so that eps matters
    norm.weight.data.copy_(weight)
    theirs, their_weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    hidden.requires_grad_()
    out = norm(hidden)
    expected = theirs / (theirs.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * their_weight
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)
    out.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(hidden.grad, theirs.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm.weight.grad, their_weight.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_rms_norm_weight_is_tagged_for_sequence_parallelism(sequence_parallel):
    config = make_config(sequence_parallel=sequence_parallel, tensor_model_parallel_size=2)
    norm = RMSNorm(config, hidden_size=6)
    assert norm.weight.sequence_parallel is sequence_parallel


def test_rms_norm_has_the_dtype_of_the_parameters():
    norm = RMSNorm(make_config(bf16=True, params_dtype=torch.bfloat16), hidden_size=6)
    assert norm.weight.dtype == torch.bfloat16
    assert torch.equal(norm.weight, torch.ones(6, dtype=torch.bfloat16))
