"""Layers of pipeline stages: those that a configuration gives, those that are chosen, and those that cannot be."""

from itertools import combinations, pairwise

import pytest
from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout

from megatron_prime.hf.shape import ModelShape
from megatron_prime.hf.stages import stage_faults, stage_layers
from tests.support.hf_shapes import make_shape
from tests.support.planned_runs import PUBLIC

LLAMA = make_shape("llama", num_layers=6)
REFUSED = [
    (7, 1, None, "parallel.pipeline = 7 exceeds num_hidden_layers = 6"),
    (4, 2, None, "parallel.pipeline * virtual_pipeline = 8 exceeds num_hidden_layers = 6"),
    (2, 1, (6,), "parallel.stage_layers has 1 numbers, but parallel.pipeline = 2"),
    (2, 2, (3, 3), "parallel.stage_layers has 2 numbers, but parallel.pipeline * virtual_pipeline = 4"),
    (2, 1, (6, 0), "parallel.stage_layers = [6, 0]: every part of the model needs a layer"),
    (2, 1, (7, -1), "every part of the model needs a layer"),
    (2, 1, (3, 4), "parallel.stage_layers = [3, 4] adds up to 7 layers, but num_hidden_layers = 6"),
    (2, 2, (1, 1, 1, 1), "adds up to 4 layers, but num_hidden_layers = 6"),
]


@pytest.mark.parametrize(("pipeline", "virtual", "given", "fault"), REFUSED)
def test_layers_that_cannot_be_split_are_refused(pipeline, virtual, given, fault):
    (found,) = stage_faults(LLAMA, pipeline, virtual, given)
    assert fault in found
    with pytest.raises(ValueError, match=r"parallel\.") as caught:
        stage_layers(LLAMA, pipeline, virtual, given)
    assert str(caught.value) == found


def test_chunks_are_in_the_order_of_the_layers_and_alternate_between_stages():
    assert stage_layers(LLAMA, 2, 2, (1, 2, 1, 2)) == [
        (range(0, 1), range(3, 4)),
        (range(1, 3), range(4, 6)),
    ]
    assert stage_layers(LLAMA, 1) == [(range(6),)]


@pytest.mark.parametrize(
    ("pipeline", "given"),
    [(3, (1, 3, 2)), (2, (1, 2, 1, 2)), (3, (1, 1, 1, 1, 1, 1)), (2, (1, 1, 1, 1, 1, 1))],
)
def test_megatron_puts_the_same_layers_on_a_stage(pipeline, given, monkeypatch):
    virtual = len(given) // pipeline
    monkeypatch.setattr(
        "megatron.core.parallel_state.get_virtual_pipeline_model_parallel_world_size",
        lambda: virtual if virtual > 1 else None,
    )
    rows = [["decoder"] * count for count in given]
    layout = PipelineParallelLayerLayout(rows, pipeline)
    for stage, chunks in enumerate(stage_layers(LLAMA, pipeline, virtual, given)):
        for index, layers in enumerate(chunks):
            assert layout.get_layer_id_list(vp_stage=index, pp_rank=stage) == [*layers]


CHOSEN = {
    # (model, pipeline, virtual) -> layers of the chunks; the output layer is worth 2.3 layers of the 7B model, 1.2 of
    # the 70B model and 2.9 of the 235B model.
    ("Qwen2.5-7B", 2, 1): (15, 13),
    ("Qwen2.5-7B", 4, 1): (7, 8, 8, 5),
    ("Llama-3-70B", 4, 1): (20, 20, 20, 20),
    ("Llama-3-70B", 8, 2): (*(5,) * 14, 6, 4),
    ("Qwen3-235B-A22B", 4, 1): (24, 24, 24, 22),
    ("Qwen3-235B-A22B", 4, 2): (12, 12, 12, 12, 12, 12, 12, 10),
}


@pytest.mark.parametrize(("model", "pipeline", "virtual"), CHOSEN)
def test_layers_of_public_models(model, pipeline, virtual):
    stages = stage_layers(ModelShape.from_hf_config(PUBLIC[model]), pipeline, virtual)
    in_order = [chunks[index] for index in range(virtual) for chunks in stages]
    assert tuple(map(len, in_order)) == CHOSEN[model, pipeline, virtual]


@pytest.mark.parametrize("vocab_size", [37, 300, 5000])
@pytest.mark.parametrize("num_layers", [5, 6, 9])
@pytest.mark.parametrize(("pipeline", "virtual"), [(2, 1), (3, 1), (4, 1), (2, 2)])
def test_no_other_split_is_cheaper_by_more_than_evenness_is_worth(vocab_size, num_layers, pipeline, virtual):
    shape = make_shape("llama", num_layers=num_layers, vocab_size=vocab_size)
    num_chunks = pipeline * virtual
    # Two attention projections of 12 x 24, two of 12 x 8, three MLP projections of 12 x 20, and the output layer.
    layer, output = 2 * 12 * 24 + 2 * 12 * 8 + 3 * 12 * 20, 12 * vocab_size

    def slowest(counts):
        return max(max(counts[:-1]) * layer, counts[-1] * layer + output)

    cuts = combinations(range(1, num_layers), num_chunks - 1)
    every = [tuple(stop - start for start, stop in pairwise((0, *between, num_layers))) for between in cuts]
    best = min(map(slowest, every))
    stages = stage_layers(shape, pipeline, virtual)
    counts = tuple(len(chunks[index]) for index in range(virtual) for chunks in stages)
    is_even = len(set(counts)) == 1
    assert best <= slowest(counts) <= (best / 0.97 if is_even else best)
