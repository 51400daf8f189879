"""Layouts by name for worker processes, and conversions between a rank's weights and HF tensors.

The layouts of one number of processes run one after another in the same processes, which start once.
"""

from dataclasses import replace
from typing import Any

import torch
from megatron.core import parallel_state, tensor_parallel

from megatron_prime.hf.convert import export_local
from megatron_prime.parallel.platform import select_platform
from megatron_prime.parallel.topology import Topology, build_topology
from tests.support.deadlines import seconds
from tests.support.tiny_models import as_in_checkpoint

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {}),
    "tp2": (2, {"tensor": 2}),
    "tp2+sp": (2, {"tensor": 2, "sequence_parallel": True}),
    "pp2": (2, {"pipeline": 2}),
    "pp2 vpp2": (2, {"pipeline": 2, "virtual_pipeline": 2}),
    "pp2 uneven": (2, {"pipeline": 2, "layers_per_stage": (3, 1)}),
    "pp2 vpp2 uneven": (2, {"pipeline": 2, "virtual_pipeline": 2, "layers_per_stage": (2, 1, 1, 2)}),
    "pp3": (3, {"pipeline": 3}),
    "dp2": (2, {}),
    "cp2": (2, {"context": 2}),
    "ep2": (2, {"expert": 2}),
    "etp2": (2, {"expert_tensor": 2}),
    "tp2+sp ep2": (2, {"tensor": 2, "sequence_parallel": True, "expert": 2}),
    "tp2+sp etp2": (2, {"tensor": 2, "sequence_parallel": True, "expert_tensor": 2}),
    "cp2 ep2": (2, {"context": 2, "expert": 2}),
    "tp4": (4, {"tensor": 4}),
    "dp4": (4, {}),
    "pp4": (4, {"pipeline": 4}),
    "tp2 pp2": (4, {"tensor": 2, "pipeline": 2}),
    "tp2 dp2": (4, {"tensor": 2}),
    "pp2 dp2": (4, {"pipeline": 2}),
    "tp2+sp pp2": (4, {"tensor": 2, "sequence_parallel": True, "pipeline": 2}),
    "tp2+sp cp2": (4, {"tensor": 2, "sequence_parallel": True, "context": 2}),
    "tp2 pp2 vpp2": (4, {"tensor": 2, "pipeline": 2, "virtual_pipeline": 2}),
    "pp2 cp2": (4, {"pipeline": 2, "context": 2}),
    "ep2 etp2": (4, {"expert": 2, "expert_tensor": 2}),
    "ep2 dp2": (4, {"expert": 2}),
    "pp2 ep2": (4, {"pipeline": 2, "expert": 2}),
    "pp2 vpp2 ep2": (4, {"pipeline": 2, "virtual_pipeline": 2, "expert": 2}),
    "tp2+sp ep2 etp2": (4, {"tensor": 2, "sequence_parallel": True, "expert": 2, "expert_tensor": 2}),
    "cp2 dp2": (4, {"context": 2}),
}
"""Layout name -> (number of processes, sizes for build_topology); data parallelism takes the remaining ranks."""


def layouts_of(names) -> dict[int, list[str]]:
    """Group layouts by their number of processes."""
    by_size: dict[int, list[str]] = {}
    for name in names:
        by_size.setdefault(LAYOUTS[name][0], []).append(name)
    return by_size


_current: tuple[dict[str, Any], Topology, str | None] | None = None
"""Sizes, topology and the name of its tensor-parallel group of the last call of topology_of."""


def topology_of(layout: str, dtype: str = "fp32", timeout_s: float = 120.0) -> Topology:
    """Join the job and return a topology in a layout of LAYOUTS.

    The process groups of the last call are used again if the layout is the same, which is much faster than building
    them; the parallel random streams start from the seed in either case.
    """
    global _current
    platform = select_platform("cpu", dtype, timeout_s=seconds(timeout_s))
    platform.start_process_group()
    sizes = LAYOUTS[layout][1]
    if _current is not None and _current[0] == sizes and _current[2] == _tensor_group_name():
        tensor_parallel.model_parallel_cuda_manual_seed(1, force_reset_rng=True)
        return replace(_current[1], platform=platform)
    topology = build_topology(platform, **sizes)
    _current = sizes, topology, _tensor_group_name()
    return topology


def _tensor_group_name() -> str | None:
    """Return torch's unique name of the current tensor-parallel group, or None if no topology exists."""
    group = parallel_state.get_tensor_model_parallel_group(check_initialized=False)
    return group.group_name if group is not None else None


def blocks_of(named: dict[str, torch.Tensor], parameters, topology) -> list[Any]:
    """Return this rank's tensors as HF blocks, without copies that another tensor-parallel rank or stage returns."""
    kept = [
        p
        for p in parameters
        if not p.is_tied_copy and (topology.tensor_rank == 0 or not p.replicated_over_tp)
    ]
    names = {p.megatron_name for p in kept}
    return [
        (block.hf_name, block.dim, block.hf_start, block.tensor.clone())
        for block in export_local({n: t for n, t in named.items() if n in names}, kept)
    ]


def weight_blocks(built, topology):
    """Return this rank's weights as HF blocks, without copies that another rank returns."""
    return blocks_of(dict(built.module.named_parameters()), built.parameters, topology)


def whole_tensors(blocks_by_rank, like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Assemble the blocks of all ranks into whole HF tensors, with NaN in parts that no rank returned."""
    whole = {name: torch.full_like(tensor, torch.nan) for name, tensor in like.items()}
    for blocks in blocks_by_rank:
        for name, dim, start, block in blocks:
            whole[name].narrow(dim, start, block.shape[dim]).copy_(block)
    return whole


def hf_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a model under the names of its HF checkpoint, without a tied output layer."""
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return as_in_checkpoint(model, named)
