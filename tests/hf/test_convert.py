"""Copies between HF tensors and Megatron parameters lose nothing and refuse what does not fit."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_prime.hf.convert import HFBlock, assemble_hf, export_local, import_hf, load_parameter
from megatron_prime.hf.mapping import ExpertShare, Piece, hf_tensors
from tests.support.hf_shapes import VARIANTS, import_rank, make_shape, random_hf, slice_reader


@settings(max_examples=60, deadline=None)
@given(
    variant=st.sampled_from(sorted(VARIANTS)),
    tp_size=st.sampled_from([1, 2]),
    cut=st.integers(0, 2),
    norm_style=st.sampled_from(["local", "te"]),
    ep_size=st.sampled_from([1, 2, 4]),
)
def test_a_round_trip_is_bit_equal(variant, tp_size, cut, norm_style, ep_size):
    """Import, export and assembly change nothing, for one or two pipeline stages and any TP and EP size.

    Each rank here is both a TP rank and, TP ranks of an expert parallel rank being numbered first, an expert's.
    """
    shape = make_shape(variant)
    tensors = random_hf(shape)
    chunks = [range(0, 2)] if cut == 0 else [range(0, cut), range(cut, 2)]
    blocks: list[HFBlock] = []
    for stage, layers in enumerate(chunks):
        for tp_rank, ep_rank in itertools.product(range(tp_size), range(ep_size if shape.is_moe else 1)):
            experts = ExpertShare(ep_size, ep_rank, tp_size, tp_rank) if shape.is_moe else ExpertShare()
            parameters, named = import_rank(
                shape,
                tensors,
                tp_size=tp_size,
                tp_rank=tp_rank,
                layers=layers,
                is_first_stage=stage == 0,
                is_last_stage=stage == len(chunks) - 1,
                norm_style=norm_style,
                experts=experts,
            )
            own = [
                p
                for p in parameters
                if not (p.is_tied_copy or (p.replicated_over_tp and tp_rank) or (ep_rank and not p.is_expert))
            ]
            blocks += export_local({p.megatron_name: named[p.megatron_name] for p in own}, own)
    back = dict(assemble_hf(hf_tensors(shape), blocks))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_assemble_refuses_repeated_missing_and_unknown_blocks():
    expected, whole = {"a": (2, 2)}, torch.ones(2, 2)
    with pytest.raises(ValueError, match="a was given more than once"):
        list(assemble_hf(expected, [HFBlock("a", 0, 0, whole), HFBlock("a", 0, 0, whole)]))
    with pytest.raises(ValueError, match="1 HF tensors were not exported completely, the first is a"):
        list(assemble_hf(expected, [HFBlock("a", 1, 0, whole[:, :1])]))
    with pytest.raises(ValueError, match="b is not a tensor of this model"):
        list(assemble_hf(expected, [HFBlock("b", 0, 0, whole)]))


def test_import_refuses_another_model():
    shape = make_shape()
    parameters, named = import_rank(
        shape,
        random_hf(shape),
        tp_size=1,
        tp_rank=0,
        layers=range(2),
        is_first_stage=True,
        is_last_stage=True,
    )
    renamed = {name.replace("final_layernorm", "final_norm"): tensor for name, tensor in named.items()}
    with pytest.raises(
        ValueError, match=r"lacks \['decoder.final_layernorm.weight'\].*decoder.final_norm.weight"
    ):
        import_hf(renamed, parameters, slice_reader({}))
    named["decoder.final_layernorm.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"decoder.final_layernorm.weight has shape \(3,\)"):
        list(export_local(named, parameters))


def test_values_are_cast_to_the_parameters_precision():
    local = torch.nn.Parameter(torch.zeros(2, 3, dtype=torch.bfloat16))
    whole = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    load_parameter(local, [Piece("w", 0, 2, 0, 2)], slice_reader({"w": whole}))
    assert local.dtype == torch.bfloat16 and local.requires_grad
    assert torch.equal(local.detach(), whole[2:].bfloat16())


def test_rows_after_the_last_piece_become_zero():
    local = torch.full((5, 2), torch.nan)
    load_parameter(local, [Piece("w", 0, 0, 0, 3)], slice_reader({"w": torch.ones(3, 2)}))
    assert local.tolist() == [[1, 1]] * 3 + [[0, 0]] * 2


def test_a_block_of_another_shape_is_refused_not_broadcast():
    with pytest.raises(ValueError, match=r"w: the block read has shape \(1, 3\), \(2, 3\) is needed"):
        load_parameter(torch.zeros(2, 3), [Piece("w", 0, 0, 0, 2)], lambda *_: torch.ones(1, 3))


def test_exported_blocks_are_views_without_gradients():
    shape = make_shape()
    where = {"tp_size": 1, "tp_rank": 0, "layers": range(2), "is_first_stage": True, "is_last_stage": True}
    parameters, named = import_rank(shape, random_hf(shape), **where)
    named = {name: torch.nn.Parameter(tensor) for name, tensor in named.items()}
    blocks = list(export_local(named, parameters))
    storages = {tensor.untyped_storage().data_ptr() for tensor in named.values()}
    assert {block.tensor.untyped_storage().data_ptr() for block in blocks} == storages
    assert not any(block.tensor.requires_grad for block in blocks)


def test_a_complete_tensor_is_yielded_at_once_in_memory_of_its_own():
    halves, other = torch.arange(6.0).view(3, 2), torch.ones(2)
    num_given = 0

    def blocks():
        nonlocal num_given
        for block in (
            HFBlock("a", 0, 2, halves[2:]),
            HFBlock("a", 0, 0, halves[:2]),
            HFBlock("b", 0, 0, other),
        ):
            num_given += 1
            yield block

    assembled = assemble_hf({"a": (3, 2), "b": (2,)}, blocks())
    name, tensor = next(assembled)
    assert (name, num_given) == ("a", 2)
    assert torch.equal(tensor, halves)
    halves.zero_()
    assert tensor.tolist() == [[0, 1], [2, 3], [4, 5]]
    name, tensor = next(assembled)  # came as one block
    other.zero_()
    assert (name, tensor.tolist()) == ("b", [1, 1])
    assert next(assembled, None) is None
