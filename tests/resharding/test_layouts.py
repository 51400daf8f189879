"""Layouts: who is where, and what is refused."""

import pytest
from plan_shapes import make_shape

from megatron_prime.resharding.layouts import EngineLayout, TrainingLayout, local_parameters


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainingLayout(vpp=2), "vpp=2"),
        (lambda: TrainingLayout(ep=4), "ep=4"),
        (lambda: TrainingLayout(tp=0), "tp must be positive"),
        (lambda: TrainingLayout(pp=3).stage_layers(4), "4 layers cannot be split evenly over 3"),
        (lambda: TrainingLayout(pp=2, layers_per_stage=(1, 2)).stage_layers(4), "does not add up"),
        (lambda: TrainingLayout(pp=2, layers_per_stage=(4,)), "1 entries for 2"),
        (lambda: EngineLayout(0, 1, ()), "must be positive"),
        (lambda: EngineLayout(2, 2, ((0, 1), (2,))), "2 ranks for each of 2 engines"),
    ],
)
def test_layouts_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 1, 3, 2), (4, 2, 2, 3), (2, 2, 1, 4)])
def test_ranks_are_in_megatrons_order(sizes):
    """Tensor fastest, then context, data, pipeline: the order that nested loops over the axes give."""
    tp, cp, dp, pp = sizes
    layout = TrainingLayout(tp=tp, cp=cp, dp=dp, pp=pp)
    holders, rank = {}, 0
    for pp_rank in range(pp):
        for _ in range(dp):
            for _ in range(cp):
                for tp_rank in range(tp):
                    assert layout.coordinates(rank) == (tp_rank, pp_rank)
                    holders.setdefault((tp_rank, pp_rank), []).append(rank)
                    rank += 1
    assert layout.num_ranks == rank
    for (tp_rank, pp_rank), ranks in holders.items():
        assert list(layout.replicas(tp_rank, pp_rank)) == ranks


def test_the_stages_parameters_are_the_models():
    shape = make_shape()
    names = [
        piece.hf_name
        for stage in range(2)
        for parameter in local_parameters(shape, TrainingLayout(pp=2), 0, stage)
        for piece in parameter.pieces
    ]
    assert {name for name in names if ".layers." in name} == {
        name.replace("layers.0", f"layers.{layer}")
        for name in names
        if ".layers.0." in name
        for layer in range(4)
    }


def test_consecutive_engines():
    assert EngineLayout.consecutive(2, 2, first_rank=4).ranks == ((4, 5), (6, 7))
