"""What every worker process of the layout tests needs: a layout by name, and the HF view of its weights.

Several layouts of the same number of processes are tried one after another in the same processes.
"""

import torch
from parity_worker import LAYOUTS, blocks_of

from megatron_prime.parallel.platform import select_platform
from megatron_prime.parallel.topology import Topology, build_topology

ALL_LAYOUTS = LAYOUTS | {
    "dp4": (4, 1, 1, False, 1),
    "pp2 dp2": (4, 1, 2, False, 1),
    "tp2+sp pp2": (4, 2, 2, True, 1),
}


def topology_of(layout: str, dtype: str = "fp32", timeout_s: float = 120.0) -> Topology:
    """Join the job and take up a layout of ALL_LAYOUTS."""
    _, tensor, pipeline, sequence_parallel, context = ALL_LAYOUTS[layout]
    platform = select_platform("cpu", dtype, timeout_s=timeout_s)
    platform.start_process_group()
    return build_topology(platform, tensor, pipeline, sequence_parallel, context=context)


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
    return {name: parameter.detach() for name, parameter in model.named_parameters()}
