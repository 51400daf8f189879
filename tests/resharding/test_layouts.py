"""Layouts: ranks of each coordinate, and refused sizes."""

import pytest
import torch
from megatron.core.parallel_state import RankGenerator
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from megatron_prime.hf.mapping import hf_tensors
from megatron_prime.resharding.layouts import EngineLayout, TrainingLayout, local_parameters
from tests.support.hf_shapes import make_shape
from tests.support.plan_shapes import make_moe_shape

FOUR_LAYERS = make_shape("llama", num_layers=4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainingLayout(vpp=2), "vpp=2 needs a pipeline"),
        (lambda: TrainingLayout(ep=4, tp=2), "etp=1 times ep=4 does not divide the 2 ranks of a stage"),
        (lambda: TrainingLayout(tp=0), "tp must be positive"),
        (
            lambda: TrainingLayout(pp=5).stage_layers(FOUR_LAYERS),
            "pipeline = 5 exceeds num_hidden_layers = 4",
        ),
        (lambda: TrainingLayout(pp=2, layers_per_stage=(1, 2)).stage_layers(FOUR_LAYERS), "adds up to 3"),
        (lambda: TrainingLayout(pp=2, layers_per_stage=(4,)), "1 entries for 2"),
        (lambda: EngineLayout(0, 1, ()), "must be positive"),
        (lambda: EngineLayout(1, 2, ((0, 1),), ep=3), "ep=3 must divide its tp=2"),
        (lambda: EngineLayout(2, 2, ((0, 1), (2,))), "2 ranks for each of 2 engines"),
    ],
)
def test_inconsistent_layouts_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def holders(layout, find):
    """Return coordinates -> ranks, where `find` returns the coordinates of a rank."""
    found = {}
    for rank in range(layout.num_ranks):
        found.setdefault(find(rank), []).append(rank)
    return found


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"tp": 2, "dp": 3, "pp": 2},
        {"tp": 4, "cp": 2, "dp": 2, "pp": 3, "ep": 8},
        {"tp": 2, "cp": 2, "dp": 2, "pp": 4, "ep": 2, "etp": 4},
        {"tp": 1, "dp": 8, "pp": 2, "ep": 4, "etp": 2},
    ],
    ids=str,
)
def test_ranks_have_megatrons_order(sizes):
    """Compare with the generator by which Megatron creates its dense and expert process groups."""
    layout = TrainingLayout(**sizes)
    order = "tp-cp-ep-dp-pp"
    dense = RankGenerator(tp=layout.tp, ep=1, dp=layout.dp, pp=layout.pp, cp=layout.cp, order=order)
    assert dense.world_size == layout.num_ranks
    found = holders(layout, layout.coordinates)
    assert sorted(found.values()) == sorted(dense.get_ranks("dp-cp"))
    for group in dense.get_ranks("tp"):
        assert [layout.coordinates(rank)[0] for rank in group] == list(range(layout.tp))
    for group in dense.get_ranks("pp"):
        assert [layout.coordinates(rank)[1] for rank in group] == list(range(layout.pp))
    for coordinates, ranks in found.items():
        assert list(layout.replicas(*coordinates)) == ranks

    num_replicas = layout.ranks_per_stage // (layout.etp * layout.ep)
    expert = RankGenerator(tp=layout.etp, ep=layout.ep, dp=num_replicas, pp=layout.pp, cp=1, order=order)

    def expert_coordinates(rank):
        share = layout.expert_share(rank)
        return share.etp_rank, share.ep_rank, layout.coordinates(rank)[1]

    found = holders(layout, expert_coordinates)
    assert sorted(found.values()) == sorted(expert.get_ranks("dp"))
    for group in expert.get_ranks("ep"):
        assert [layout.expert_share(rank).ep_rank for rank in group] == list(range(layout.ep))
    for group in expert.get_ranks("tp"):
        assert [layout.expert_share(rank).etp_rank for rank in group] == list(range(layout.etp))
    for coordinates, ranks in found.items():
        assert list(layout.expert_replicas(*coordinates)) == ranks


@pytest.mark.parametrize(("pp", "vpp", "num_layers"), [(2, 1, 4), (2, 2, 8), (4, 3, 24)])
def test_chunks_have_the_layers_of_megatrons_interleaved_schedule(pp, vpp, num_layers):
    config = TransformerConfig(
        num_layers=num_layers,
        hidden_size=8,
        num_attention_heads=1,
        pipeline_model_parallel_size=pp,
        virtual_pipeline_model_parallel_size=vpp if vpp > 1 else None,
        pipeline_dtype=torch.float32,
    )
    shape = make_shape("llama", num_layers=num_layers)
    for stage, chunks in enumerate(TrainingLayout(pp=pp, vpp=vpp).stage_layers(shape)):
        for chunk, layers in enumerate(chunks):
            offset = get_transformer_layer_offset(config, vp_stage=chunk if vpp > 1 else None, pp_rank=stage)
            assert layers == range(offset, offset + num_layers // (pp * vpp))


def test_layers_per_stage_lists_the_chunks_in_model_order():
    layout = TrainingLayout(pp=2, vpp=2, layers_per_stage=(1, 2, 3, 1))
    shape = make_shape("llama", num_layers=7)
    assert layout.stage_layers(shape) == [(range(0, 1), range(3, 6)), (range(1, 3), range(6, 7))]


@pytest.mark.parametrize("sizes", [{"pp": 2}, {"pp": 2, "vpp": 2}, {"tp": 2, "dp": 2, "ep": 4}], ids=str)
def test_the_parameters_of_all_ranks_cover_the_model(sizes):
    shape = make_moe_shape()
    layout = TrainingLayout(**sizes)
    held = {
        piece.hf_name
        for rank in range(layout.num_ranks)
        for parameter in local_parameters(shape, layout, rank)
        for piece in parameter.pieces
    }
    assert held == set(hf_tensors(shape))
    for rank in range(layout.num_ranks):
        names = [parameter.megatron_name for parameter in local_parameters(shape, layout, rank)]
        assert len(names) == len(set(names))


def test_consecutive_engines():
    assert EngineLayout.consecutive(2, 2, first_rank=4).ranks == ((4, 5), (6, 7))
    replicas = EngineLayout.consecutive(2, 2, dp=2, ep=2)
    assert replicas.ranks == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert (replicas.num_engines, replicas.expert_tp) == (4, 1)
