"""Views of HF tensors in parameters that are laid out like SGLang's."""

import pytest
import torch

from megatron_prime.engines.sglang.loader.parameters import ParameterViews
from megatron_prime.engines.sglang.loader.wire import Slice
from tests.engines.sglang.loader.sglang_layout import FusedModel, quantized


@pytest.fixture
def model():
    return FusedModel(hidden=4, query=6, kv=2, ffn=3, vocab=10, padded_vocab=12, num_experts=4, ep_rank=1)


def row(name, dim, start, length, num_elements, dtype="float32"):
    return Slice(name, dim, start, length, num_elements, dtype)


LOCATIONS = {
    "model.embed_tokens.weight": ("model.embed_tokens.weight", slice(0, 12)),
    "model.layer.q_proj.weight": ("model.layer.qkv_proj.weight", slice(0, 6)),
    "model.layer.k_proj.bias": ("model.layer.qkv_proj.bias", slice(6, 8)),
    "model.layer.v_proj.weight": ("model.layer.qkv_proj.weight", slice(8, 10)),
    "model.layer.gate_proj.weight": ("model.layer.gate_up_proj.weight", slice(0, 3)),
    "model.layer.up_proj.weight": ("model.layer.gate_up_proj.weight", slice(3, 6)),
    "model.layer.down_proj.weight": ("model.layer.down_proj.weight", slice(0, 4)),
}


@pytest.mark.parametrize("name", LOCATIONS)
def test_fused_parameters_hold_hf_tensors_one_after_the_other(model, name):
    target, place = LOCATIONS[name]
    parameter = dict(model.named_parameters())[target]
    whole = parameter[place]
    view = ParameterViews(model).find(row(name, 0, 1, 1, whole[1:2].numel()))
    assert view.data_ptr() == whole[1:2].data_ptr() and view.shape == whole[1:2].shape


def test_slices_of_columns_are_found(model):
    view = ParameterViews(model).find(row("model.layer.down_proj.weight", 1, 1, 2, 8))
    assert torch.equal(view, model.model.layer.down_proj.weight[:, 1:3])


@pytest.mark.parametrize(
    ("leaf", "target", "place"),
    [
        ("gate_proj", "w13_weight", slice(0, 3)),
        ("w3", "w13_weight", slice(3, 6)),
        ("down_proj", "w2_weight", slice(0, 4)),
    ],
)
def test_experts_are_found_by_their_global_number(model, leaf, target, place):
    # The second of two expert-parallel ranks holds experts 2 and 3.
    whole = getattr(model.model.layer.experts, target)[1][place]
    view = ParameterViews(model).find(row(f"model.layer.experts.3.{leaf}.weight", 0, 0, 2, whole[:2].numel()))
    assert view.data_ptr() == whole[:2].data_ptr()


QUANTIZED = {
    "model.layer.q_proj.weight_scale_inv": ("model.layer.qkv_proj.weight_scale_inv", slice(0, 4)),
    "model.layer.v_proj.weight_scale_inv": ("model.layer.qkv_proj.weight_scale_inv", slice(5, 6)),
    "model.layer.up_proj.weight_scale_inv": ("model.layer.gate_up_proj.weight_scale_inv", slice(2, 4)),
    "model.layer.down_proj.weight_scale_inv": ("model.layer.down_proj.weight_scale_inv", slice(0, 1)),
}


def test_scales_are_laid_out_like_their_weights():
    sizes = {"hidden": 128, "query": 512, "kv": 128, "ffn": 256, "vocab": 10, "padded_vocab": 12}
    model = quantized(FusedModel(**sizes, num_experts=4, ep_rank=1))
    parameters = dict(model.named_parameters())
    views = ParameterViews(model)
    for name, (target, place) in QUANTIZED.items():
        whole = parameters[target][place]
        view = views.find(row(name, 0, 0, len(whole), whole.numel()))
        assert view.data_ptr() == whole.data_ptr() and view.shape == whole.shape
    expert = parameters["model.layer.experts.w13_weight_scale_inv"][1]
    view = views.find(row("model.layer.experts.3.up_proj.weight_scale_inv", 0, 0, 2, 2))
    assert view.data_ptr() == expert[2:].data_ptr()
    weight = views.find(row("model.layer.k_proj.weight", 0, 0, 128, 128 * 128, "float8_e4m3fn"))
    assert weight.data_ptr() == parameters["model.layer.qkv_proj.weight"][512:].data_ptr()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (row("model.layer.q_proj.scale", 0, 0, 1, 4), r"no parameter model\.layer\.qkv_proj\.scale"),
        (
            row("model.layer.q_proj.weight", 0, 5, 2, 8),
            r"\[5, 7\) along dim 0 is outside of this rank's \(6, 4\)",
        ),
        (row("model.layer.q_proj.bias", 1, 0, 1, 1), "outside"),
        (row("model.layer.q_proj.weight", 0, 0, 1, 4, "bfloat16"), r"is torch\.float32 here and bfloat16"),
        (row("model.layer.q_proj.weight", 0, 0, 1, 5), "5 elements in the trainer and 4 here"),
        (row("model.layer.experts.1.w1.weight", 0, 0, 1, 4), "expert 1 .* is not on this rank"),
    ],
)
def test_slices_that_do_not_fit_are_refused(model, wanted, message):
    with pytest.raises(ValueError, match=message):
        ParameterViews(model).find(wanted)


def test_every_parameter_must_be_filled_but_for_the_padding_of_the_vocabulary(model):
    views = ParameterViews(model)
    rows = [
        row("model.embed_tokens.weight", 0, 0, 10, 40),
        row("model.layer.q_proj.weight", 0, 0, 6, 24),
        row("model.layer.k_proj.weight", 0, 0, 2, 8),
        row("model.layer.v_proj.weight", 0, 0, 2, 8),
        row("model.layer.q_proj.bias", 0, 0, 6, 6),
        row("model.layer.k_proj.bias", 0, 0, 2, 2),
        row("model.layer.v_proj.bias", 0, 0, 2, 2),
        row("model.layer.gate_proj.weight", 0, 0, 3, 12),
        row("model.layer.up_proj.weight", 0, 0, 3, 12),
        row("model.layer.down_proj.weight", 1, 0, 3, 12),
        *(
            row(f"model.layer.experts.{e}.{leaf}.weight", 0, 0, 3, 12)
            for e in (2, 3)
            for leaf in ("w1", "w3", "w2")
        ),
    ]
    model.model.layer.k_scale = torch.nn.Parameter(torch.ones(()), requires_grad=False)
    with pytest.raises(
        ValueError, match=r"1 parameters would not be filled: model\.layer\.k_scale \(0 of 1\)"
    ):
        ParameterViews(model).require_all(iter(rows))
    # SGLang's mark on the scales of an FP8 KV cache, which it computes itself where a checkpoint has none.
    model.model.layer.k_scale._skip_weight_check = True
    ParameterViews(model).require_all(iter(rows))
    with pytest.raises(
        ValueError, match=r"1 parameters would not be filled: model\.layer\.down_proj\.weight \(0 of 12\)"
    ):
        views.require_all(iter(rows[:9] + rows[10:]))


def test_the_padding_of_the_vocabulary_is_cleared_and_nothing_else(model):
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    ParameterViews(model).clear_padding()
    for name, parameter in model.named_parameters():
        expected = before[name]
        if name == "model.embed_tokens.weight":
            assert expected[10:].any() and len(expected) == 12
            expected[10:] = 0
        assert torch.equal(parameter, expected), name
