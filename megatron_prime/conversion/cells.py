"""How a model stands in Megatron's distributed checkpoint format, in pieces of HF tensors.

Megatron names a tensor without its layer (and expert): all layers are one array with leading axes, and what a rank
saves are chunks of it. A cell is one layer's (one expert's) part, the same for every layout that wrote it.

    decoder.layers.mlp.experts.experts.linear_fc1.weight  [layers, experts, 2 * ffn, hidden]   cell (3, 7) = gate | up

Models whose layers differ in kind (dense ones among mixtures of experts) have the layer in the name instead.
"""

import re
from dataclasses import dataclass

from megatron_prime.hf.mapping import ModelShape, Piece, parameters_of

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_EXPERT = re.compile(r"mlp\.experts\.local_experts\.(\d+)\.(.+)")
_WITH_EXTRA_STATE = ("linear_proj.weight", "linear_qkv.weight", "linear_fc1.weight", "linear_fc2.weight")


@dataclass(frozen=True)
class Cell:
    """The part of a checkpoint's tensor that belongs to one layer, or to one expert of it."""

    key: str
    leading: tuple[int, ...]
    """Sizes of the leading axes: layers, experts, or none."""
    index: tuple[int, ...]
    """Where along them."""
    shape: tuple[int, ...]
    """Of the cell; the vocabulary is padded."""
    pieces: tuple[Piece, ...]
    """What it is made of; rows that no piece covers are padding, and zero."""

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """Of the checkpoint's tensor."""
        return (*self.leading, *self.shape)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Of the cell in the checkpoint's tensor."""
        return (*self.index, *(0 for _ in self.shape))

    @property
    def is_vocab(self) -> bool:
        """Whether the first dim is the padded vocabulary, whose size depends on who wrote it."""
        return self.key in ("embedding.word_embeddings.weight", "output_layer.weight")


def cells_of(shape: ModelShape) -> tuple[Cell, ...]:
    """Every cell of a model, in model order. A tied output layer is the embedding's."""
    parameters = parameters_of(
        shape,
        tp_size=1,
        tp_rank=0,
        layers=range(shape.num_layers),
        is_first_stage=True,
        is_last_stage=True,
        norm_style="te",
    )
    return tuple(_cell(shape, p.megatron_name, p.shape, p.pieces) for p in parameters)


def extra_states(shape: ModelShape) -> tuple[str, ...]:
    """Keys of the objects beside the linear layers, empty without FP8, that a strict load asks for."""
    keys = []
    for cell in cells_of(shape):
        if cell.key.endswith(_WITH_EXTRA_STATE):
            stem = cell.key.removesuffix("weight") + "_extra_state"
            index, leading = cell.index or (0,), cell.leading or (1,)
            keys.append(f"{stem}/shard_{'.'.join(map(str, index))}_{'.'.join(map(str, leading))}")
    return tuple(keys)


def _cell(shape: ModelShape, name: str, local_shape: tuple[int, ...], pieces: tuple[Piece, ...]) -> Cell:
    leading: tuple[int, ...] = ()
    index: tuple[int, ...] = ()
    in_layer = _LAYER.fullmatch(name)
    if in_layer is None:
        return Cell(name, leading, index, local_shape, pieces)
    layer, rest = int(in_layer[1]), in_layer[2]
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
