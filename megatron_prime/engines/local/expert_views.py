"""Views of a transformers model's tensors by the names of its HF checkpoint.

A checkpoint has one matrix for each projection of each expert. transformers 5 keeps all experts of a layer in two
tensors, [E, 2 F, H] and [E, H, F], and renames some; weights that arrive by checkpoint name are copied into views.
"""

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

from megatron_prime.hf.families import FAMILIES
from megatron_prime.hf.families.table import HFTensor, Placement

_IN_MEMORY = re.compile(r"model\.layers\.(\d+)\.mlp\.(gate\.weight|experts\.gate_up_proj|experts\.down_proj)")


def checkpoint_views(state: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """Return views of a state dict by checkpoint names. A model without experts keeps its names.

    Args:
        state: the result of `state_dict(keep_vars=True)` of the transformers model.
        family: model_type of the model.
    """
    tensors = {placement: [] for placement in Placement}
    for row in FAMILIES[family].rows if family in FAMILIES else ():
        tensors[row.placement] += row.tensors
    if not tensors[Placement.EXPERT]:
        return dict(state)
    # transformers renames the router as well; in the table it is the only matrix of an MoE layer outside the experts.
    router = next(tensor for tensor in tensors[Placement.MOE_LAYER] if len(tensor.dims) == 2)
    views: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = _IN_MEMORY.fullmatch(name)
        if match is None:
            views[name] = tensor
        elif match[2] == "gate.weight":
            views[router.name.format(layer=match[1])] = tensor
        else:
            views |= dict(_matrices(match[1], match[2], tensor, tensors[Placement.EXPERT]))
    return views


def _matrices(
    layer: str, kind: str, fused: Tensor, expert_tensors: list[HFTensor]
) -> Iterator[tuple[str, Tensor]]:
    """Yield each expert's own matrices of a fused tensor. The table lists them in the order gate, up, down."""
    gate, up, down = expert_tensors
    parts = (gate, up) if kind.endswith("gate_up_proj") else (down,)
    for expert, matrix in enumerate(fused):
        for part, view in zip(parts, matrix.chunk(len(parts)), strict=True):
            yield part.name.format(layer=layer, expert=expert), view
