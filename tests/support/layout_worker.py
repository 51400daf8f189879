"""What every worker process of the layout tests needs: a layout by name, and the HF view of its weights.

Several layouts of the same number of processes are tried one after another in the same processes.
"""

from typing import Any

import torch

from megatron_prime.hf.convert import export_local
from megatron_prime.parallel.platform import select_platform
from megatron_prime.parallel.topology import Topology, build_topology
from tests.support.tiny_models import as_in_checkpoint

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {}),
    "tp2": (2, {"tensor": 2}),
    "tp2+sp": (2, {"tensor": 2, "sequence_parallel": True}),
    "pp2": (2, {"pipeline": 2}),
    "pp2 vpp2": (2, {"pipeline": 2, "virtual_pipeline": 2}),
    "dp2": (2, {}),
    "cp2": (2, {"context": 2}),
    "ep2": (2, {"expert": 2}),
    "etp2": (2, {"expert_tensor": 2}),
    "tp2+sp ep2": (2, {"tensor": 2, "sequence_parallel": True, "expert": 2}),
    "tp2+sp etp2": (2, {"tensor": 2, "sequence_parallel": True, "expert_tensor": 2}),
    "cp2 ep2": (2, {"context": 2, "expert": 2}),
    "tp4": (4, {"tensor": 4}),
    "dp4": (4, {}),
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
"""Name -> processes and sizes; what is left is data parallelism."""


def layouts_of(names) -> dict[int, list[str]]:
    """Number of processes -> the layouts that it can try one after another."""
    by_size: dict[int, list[str]] = {}
    for name in names:
        by_size.setdefault(LAYOUTS[name][0], []).append(name)
    return by_size


def topology_of(layout: str, dtype: str = "fp32", timeout_s: float = 120.0) -> Topology:
    """Join the job and take up a layout of LAYOUTS."""
    platform = select_platform("cpu", dtype, timeout_s=timeout_s)
    platform.start_process_group()
    return build_topology(platform, **LAYOUTS[layout][1])


def blocks_of(named: dict[str, torch.Tensor], parameters, topology) -> list[Any]:
    """HF blocks of this rank, replicas over tensor-parallel ranks left out."""
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
    """HF blocks of this rank's weights, replicas left out."""
    return blocks_of(dict(built.module.named_parameters()), built.parameters, topology)


def whole_tensors(blocks_by_rank, like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """HF tensors from the blocks of all ranks; NaN where no rank had one."""
    whole = {name: torch.full_like(tensor, torch.nan) for name, tensor in like.items()}
    for blocks in blocks_by_rank:
        for name, dim, start, block in blocks:
            whole[name].narrow(dim, start, block.shape[dim]).copy_(block)
    return whole


def hf_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Tensors of an HF checkpoint, the tied output layer left out."""
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return as_in_checkpoint(model, named)
