"""The layers of each pipeline stage, given by the configuration or chosen by cost. Standard library only.

The cost of a stage, or of a chunk of an interleaved pipeline, is the number of weights that a token is multiplied with:
those of its layers (of experts, only the chosen ones), and at the end those of the output layer. The embedding is a
lookup without products.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate

from megatron_prime.hf.shape import ModelShape

_WORTHWHILE = 0.97
"""An uneven split must lower the cost of the most expensive chunk to this fraction, or the layers are split evenly.

The first stages hold most activations, and the first one the embedding, so unevenness costs memory there.
"""


def stage_layers(
    shape: ModelShape, pipeline: int, virtual: int = 1, given: tuple[int, ...] | None = None
) -> list[tuple[range, ...]]:
    """Return the HF layers of each chunk of each pipeline stage.

    Chunk c of the model belongs to stage c mod `pipeline` (interleaved schedule), so that a stage's chunks are not
    adjacent.

    Args:
        shape: the model.
        pipeline: number of stages.
        virtual: chunks per stage.
        given: number of layers of each chunk in model order; None chooses it by cost.

    Raises:
        ValueError: `stage_faults` has a reason.
    """
    return list(_stage_layers(shape, pipeline, virtual, given))


@lru_cache(maxsize=1024)  # `plan` asks for them again for each stage, role and phase of a layout
def _stage_layers(
    shape: ModelShape, pipeline: int, virtual: int, given: tuple[int, ...] | None
) -> tuple[tuple[range, ...], ...]:
    faults = list(stage_faults(shape, pipeline, virtual, given))
    if faults:
        raise ValueError("\n".join(faults))
    counts = given if given is not None else _chosen(shape, pipeline * virtual)
    chunks = [range(end - count, end) for end, count in zip(accumulate(counts), counts, strict=True)]
    return tuple(tuple(chunks[stage::pipeline]) for stage in range(pipeline))


def stage_faults(
    shape: ModelShape, pipeline: int, virtual: int, given: tuple[int, ...] | None
) -> Iterator[str]:
    """Yield why the layers of a model cannot be split as the configuration says."""
    num_chunks = pipeline * virtual
    product = "parallel.pipeline * virtual_pipeline" if virtual > 1 else "parallel.pipeline"
    if shape.num_layers < num_chunks:
        yield f"{product} = {num_chunks} exceeds num_hidden_layers = {shape.num_layers}: each part needs a layer"
    elif given is not None and len(given) != num_chunks:
        yield (
            f"parallel.stage_layers has {len(given)} numbers, but {product} = {num_chunks}: it needs one for each part "
            "of the model, in the order of the layers"
        )
    elif given is not None and min(given) < 1:
        yield f"parallel.stage_layers = {list(given)}: every part of the model needs a layer"
    elif given is not None and sum(given) != shape.num_layers:
        yield (
            f"parallel.stage_layers = {list(given)} adds up to {sum(given)} layers, but num_hidden_layers = "
            f"{shape.num_layers}"
        )


@lru_cache(maxsize=1024)
def _chosen(shape: ModelShape, num_chunks: int) -> tuple[int, ...]:
    """Return the numbers of layers that make the most expensive chunk as cheap as possible, or nearly so but even.

    With an interleaved schedule, too, the most expensive chunk sets the pace of all others: a stage whose next chunk is
    cheaper waits for its inputs, which arrive at that pace.
    """
    counts = [1] * num_chunks
    for _ in range(shape.num_layers - num_chunks):
        costs = _costs(shape, counts)
        # Of equally cheap chunks the last one, because in 1F1B a stage holds fewer activations than those before it.
        counts[min(range(num_chunks), key=lambda chunk: (costs[chunk], -chunk))] += 1
    if shape.num_layers % num_chunks == 0:
        even = [shape.num_layers // num_chunks] * num_chunks
        if max(_costs(shape, counts)) > _WORTHWHILE * max(_costs(shape, even)):
            return tuple(even)
    return tuple(counts)


def _costs(shape: ModelShape, counts: Sequence[int]) -> list[int]:
    """Return the cost of each chunk, times the number of layers, so that mean costs of a layer are whole numbers."""
    all_layers = sum(shape.weights_per_token(layer) for layer in range(shape.num_layers))
    costs = [count * all_layers for count in counts]
    costs[-1] += shape.vocab_size * shape.hidden_size * shape.num_layers
    return costs
