"""Kernels without content have the shapes and the kept memory of the real ones."""

import pytest
import torch
import torch.nn.functional as F

from megatron_prime.rehearsal.gpu_kernels import (
    FusedTileMath,
    attention,
    cpu_attention,
    l2_norm,
    rms_norm,
    swiglu,
    swiglu_back,
    weighted_swiglu,
    weighted_swiglu_back,
)


@pytest.mark.parametrize(("kernel", "masked"), [(attention, False), (attention, True), (cpu_attention, True)])
def test_attention_returns_queries_and_gradients_of_shared_keys(kernel, masked):
    query = torch.empty(2, 8, 16, 8, dtype=torch.bfloat16, device="meta", requires_grad=True)
    key = torch.empty(2, 4, 16, 8, dtype=torch.bfloat16, device="meta", requires_grad=True)
    mask = torch.ones(16, 16, dtype=torch.bool, device="meta") if masked else None
    attended = kernel(query, key, key, attn_mask=mask, is_causal=not masked, enable_gqa=True)
    attended.sum().backward()
    assert attended.shape == query.shape
    assert key.grad.shape == key.shape


def test_the_norm_keeps_its_input_and_a_factor():
    kept = []
    hidden = torch.empty(6, 4, dtype=torch.bfloat16, device="meta", requires_grad=True)
    weight = torch.ones(4, dtype=torch.bfloat16, device="meta", requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        rms_norm(hidden, (4,), weight, 1e-6).sum().backward()
    assert kept == [(6, 4), (4,), (6, 1)]
    assert weight.grad.shape == weight.shape


def test_activations_have_the_shapes_of_megatron():
    gates, weights = torch.rand(5, 8), torch.rand(5, 1)
    assert swiglu(gates).shape == (F.silu(gates[:, :4]) * gates[:, 4:]).shape
    assert swiglu_back(torch.rand(5, 4), gates).shape == gates.shape
    assert weighted_swiglu(gates, weights).shape == (5, 4)
    assert [each.shape for each in weighted_swiglu_back(torch.rand(5, 4), gates, weights)] == [(5, 8), (5, 1)]


def test_a_tile_has_one_buffer_with_aligned_rows():
    tile = FusedTileMath(4, 30, torch.zeros(1, dtype=torch.bfloat16), 1.0)
    product = tile.product_buffer(3, 30)
    assert (product.shape, product.stride(0)) == ((3, 30), 32)
    assert tile.gradient(product, None, 0, None).data_ptr() == product.data_ptr()


def test_the_norm_of_gradients_is_one_float32_number():
    norm, flag = l2_norm(65536, torch.zeros(1), [[torch.empty(4, dtype=torch.bfloat16, device="meta")] * 3])
    assert (norm.shape, norm.dtype, norm.device.type, flag) == ((1,), torch.float32, "meta", None)
