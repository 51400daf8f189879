"""The layout of a model in Megatron's distributed checkpoint format, in terms of HF tensors.

Megatron stores a parameter of all layers (and experts) as one tensor with leading dims for layer and expert, of which
each rank saves chunks. A cell is the part of one layer (and expert); it does not depend on the parallel layout that
wrote the checkpoint.

    decoder.layers.mlp.experts.experts.linear_fc1.weight  [layers, experts, 2 * ffn, hidden]   cell (3, 7) = gate | up

Models that mix dense layers and mixture-of-experts layers have the layer index in the name instead.
"""

import re
from dataclasses import dataclass

from megatron_prime.hf.mapping import ModelShape, Piece, parameters_of

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_EXPERT = re.compile(r"mlp\.experts\.local_experts\.(\d+)\.(.+)")
_WITH_EXTRA_STATE = ("linear_proj.weight", "linear_qkv.weight", "linear_fc1.weight", "linear_fc2.weight")


@dataclass(frozen=True)
class Cell:
    """The part of a checkpoint tensor that belongs to one layer, or to one expert of a layer."""

    key: str
    """Name of the checkpoint tensor."""
    leading: tuple[int, ...]
    """Sizes of the leading dims: (), (layers,) or (layers, experts)."""
    index: tuple[int, ...]
    """Position of the cell along the leading dims."""
    shape: tuple[int, ...]
    """Shape of the cell, with the padded vocabulary."""
    pieces: tuple[Piece, ...]
    """Slices of HF tensors that fill the cell; rows that no piece covers are zero padding."""

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """Shape of the checkpoint tensor."""
        return (*self.leading, *self.shape)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Offsets of the cell in the checkpoint tensor."""
        return (*self.index, *(0 for _ in self.shape))

    @property
    def is_vocab(self) -> bool:
        """True if the first dim is the vocabulary, whose padding depends on the layout that wrote the checkpoint."""
        return self.key in ("embedding.word_embeddings.weight", "output_layer.weight")


def cells_of(shape: ModelShape) -> tuple[Cell, ...]:
    """Return all cells of a model, in model order. A tied output layer has no cell besides the embedding's."""
    parameters = parameters_of(
        shape,
        tp_size=1,
        tp_rank=0,
        layers=range(shape.num_layers),
        is_first_stage=True,
        is_last_stage=True,
        # Checkpoints use the parameter names of Transformer Engine, whichever implementation wrote them.
        norm_style="te",
    )
    return tuple(_cell(shape, p.megatron_name, p.shape, p.pieces) for p in parameters)


def extra_states(shape: ModelShape) -> tuple[str, ...]:
    """Return the keys of the linear layers' extra states: empty without FP8, but required by a strict load."""
    keys = []
    for cell in cells_of(shape):
        if cell.key.endswith(_WITH_EXTRA_STATE):
            stem = cell.key.removesuffix("weight") + "_extra_state"
            index, leading = cell.index or (0,), cell.leading or (1,)
            # Megatron names an object by its position in the grid of all objects of that key, and by the size of the
            # grid.
            keys.append(f"{stem}/shard_{'.'.join(map(str, index))}_{'.'.join(map(str, leading))}")
    return tuple(keys)


def _cell(shape: ModelShape, name: str, local_shape: tuple[int, ...], pieces: tuple[Piece, ...]) -> Cell:
    leading: tuple[int, ...] = ()
    index: tuple[int, ...] = ()
    in_layer = _LAYER.fullmatch(name)
    if in_layer is None:
        return Cell(name, leading, index, local_shape, pieces)
    layer, rest = int(in_layer[1]), in_layer[2]
    # Homogeneous layers are stacked along a leading dim; the layer index is then not part of the name.
    prefix = "decoder.layers."
    if shape.dense_layers:
        prefix += f"{layer}."
    else:
        leading, index = (shape.num_layers,), (layer,)
    of_expert = _EXPERT.fullmatch(rest)
    if of_expert is not None:
        leading, index = (*leading, shape.num_experts), (*index, int(of_expert[1]))
        rest = f"mlp.experts.experts.{of_expert[2]}"
    return Cell(prefix + rest, leading, index, local_shape, pieces)
