"""The receiver's parts: checksums against plain integers, messages, and places in parameters laid out as SGLang's."""

import json
import struct
import threading

import pytest
import torch
import torch.distributed as dist

from megatron_prime.engines.sglang.loader import receiver
from megatron_prime.engines.sglang.loader.receiver import (
    Places,
    Slice,
    checksum,
    exchange,
    grouped,
    make_group,
    receive,
)
from tests.engines.sglang.loader.sglang_layout import FusedModel, quantized


def integers(tensor):
    """The bits of each element as a signed integer (bytes unsigned), by struct."""
    raw = bytes(tensor.contiguous().view(torch.uint8).flatten().tolist())
    code = {1: "B", 2: "h", 4: "i"}[tensor.element_size()]
    return struct.unpack(f"<{tensor.numel()}{code}", raw)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_the_checksum_is_the_sum_and_the_weighted_sum_of_the_bits(dtype, monkeypatch):
    monkeypatch.setattr(receiver, "_CHUNK", 7)
    tensor = torch.randn(5, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    for part in (tensor, tensor[1:3], tensor[:, 2:5], tensor[0]):
        words = integers(part)
        expected = [sum(words), sum(place * word for place, word in enumerate(words, 1))]
        assert checksum(part).tolist() == expected


def test_a_changed_bit_a_swap_and_a_moved_block_all_show():
    tensor = torch.randn(64, generator=torch.Generator().manual_seed(1))
    before = checksum(tensor)
    flipped = tensor.clone()
    flipped.view(torch.int32)[10] ^= 1
    swapped = tensor.clone()
    swapped[[3, 40]] = tensor[[40, 3]]
    moved = torch.cat([tensor[32:], tensor[:32]])
    assert not any(torch.equal(checksum(other), before) for other in (flipped, swapped, moved))


def test_only_large_rows_travel_by_themselves(monkeypatch):
    monkeypatch.setattr(receiver, "DIRECT_BYTES", 64)
    rows, columns, small, other = torch.ones(4, 4), torch.ones(4, 4), torch.ones(2), torch.ones(1).bfloat16()
    direct, packed = grouped([(0, small), (0, rows), (1, columns), (0, other)])
    assert [id(tensor) for tensor in direct] == [id(rows)]
    assert [[id(tensor) for tensor in part] for part in packed] == [[id(small), id(columns)], [id(other)]]


@pytest.fixture
def model():
    return FusedModel(hidden=4, query=6, kv=2, ffn=3, vocab=10, padded_vocab=12, num_experts=4, ep_rank=1)


def row(name, dim, start, length, num_elements, dtype="float32"):
    return Slice(name, dim, start, length, num_elements, dtype)


PLACES = {
    "model.embed_tokens.weight": ("model.embed_tokens.weight", slice(0, 12)),
    "model.layer.q_proj.weight": ("model.layer.qkv_proj.weight", slice(0, 6)),
    "model.layer.k_proj.bias": ("model.layer.qkv_proj.bias", slice(6, 8)),
    "model.layer.v_proj.weight": ("model.layer.qkv_proj.weight", slice(8, 10)),
    "model.layer.gate_proj.weight": ("model.layer.gate_up_proj.weight", slice(0, 3)),
    "model.layer.up_proj.weight": ("model.layer.gate_up_proj.weight", slice(3, 6)),
    "model.layer.down_proj.weight": ("model.layer.down_proj.weight", slice(0, 4)),
}


@pytest.mark.parametrize("name", PLACES)
def test_fused_parameters_hold_hf_tensors_one_after_the_other(model, name):
    target, place = PLACES[name]
    parameter = dict(model.named_parameters())[target]
    whole = parameter[place]
    view = Places(model).find(row(name, 0, 1, 1, whole[1:2].numel()))
    assert view.data_ptr() == whole[1:2].data_ptr() and view.shape == whole[1:2].shape


def test_columns_are_found_too(model):
    view = Places(model).find(row("model.layer.down_proj.weight", 1, 1, 2, 8))
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
    view = Places(model).find(row(f"model.layer.experts.3.{leaf}.weight", 0, 0, 2, whole[:2].numel()))
    assert view.data_ptr() == whole[:2].data_ptr()


QUANTIZED = {
    "model.layer.q_proj.weight_scale_inv": ("model.layer.qkv_proj.weight_scale_inv", slice(0, 4)),
    "model.layer.v_proj.weight_scale_inv": ("model.layer.qkv_proj.weight_scale_inv", slice(5, 6)),
    "model.layer.up_proj.weight_scale_inv": ("model.layer.gate_up_proj.weight_scale_inv", slice(2, 4)),
    "model.layer.down_proj.weight_scale_inv": ("model.layer.down_proj.weight_scale_inv", slice(0, 1)),
}


def test_scales_of_blocks_lie_as_their_weights_do():
    sizes = {"hidden": 128, "query": 512, "kv": 128, "ffn": 256, "vocab": 10, "padded_vocab": 12}
    model = quantized(FusedModel(**sizes, num_experts=4, ep_rank=1))
    parameters = dict(model.named_parameters())
    places = Places(model)
    for name, (target, place) in QUANTIZED.items():
        whole = parameters[target][place]
        view = places.find(row(name, 0, 0, len(whole), whole.numel()))
        assert view.data_ptr() == whole.data_ptr() and view.shape == whole.shape
    expert = parameters["model.layer.experts.w13_weight_scale_inv"][1]
    view = places.find(row("model.layer.experts.3.up_proj.weight_scale_inv", 0, 0, 2, 2))
    assert view.data_ptr() == expert[2:].data_ptr()
    weight = places.find(row("model.layer.k_proj.weight", 0, 0, 128, 128 * 128, "float8_e4m3fn"))
    assert weight.data_ptr() == parameters["model.layer.qkv_proj.weight"][512:].data_ptr()


def test_one_byte_floats_travel_by_gloo():
    store = dist.HashStore()
    sent = torch.randn(300).to(torch.float8_e4m3fn)
    got = torch.empty_like(sent)

    def receiver():
        exchange(make_group("gloo", store, 1, 2, 10), [], [(0, got)], "gloo", 10)

    thread = threading.Thread(target=receiver, daemon=True)
    thread.start()
    assert exchange(make_group("gloo", store, 0, 2, 10), [(1, sent)], [], "gloo", 10) == {}
    thread.join(10)
    assert torch.equal(got.view(torch.uint8), sent.view(torch.uint8))


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
def test_what_does_not_fit_is_said(model, wanted, message):
    with pytest.raises(ValueError, match=message):
        Places(model).find(wanted)


def test_every_parameter_must_be_filled_but_for_the_padding_of_the_vocabulary(model):
    places = Places(model)
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
    places.require_all(iter(rows))
    with pytest.raises(
        ValueError, match=r"1 parameters would not be filled: model\.layer\.down_proj\.weight \(0 of 12\)"
    ):
        places.require_all(iter(rows[:9] + rows[10:]))


def test_a_manifest_that_can_not_be_read_or_served_never_raises(model, capfd):
    for manifest in ("{", json.dumps({"protocol": -1})):
        receive(model, [(manifest, torch.empty(0))])
    output = capfd.readouterr().out
    assert output.count("weight sync: no trainer reached") == 2
    assert "protocol -1, this receiver 1" in output
