"""What one rank does in the tests of context parallelism."""

import torch
import torch.distributed as dist

from megatron_prime.parallel.context import gather_context, local_tokens, sum_context
from megatron_prime.parallel.platform import select_platform


def gather_and_sum(bounds, whole_SKD: torch.Tensor, weights_SKD: torch.Tensor):
    """Forward values and gradients on this rank, for the group of all ranks."""
    select_platform("cpu").start_process_group()
    group = dist.group.WORLD
    own_L = local_tokens(bounds, group.size(), group.rank())
    local_LKD = whole_SKD[own_L].clone().requires_grad_()
    gathered_SKD = gather_context(local_LKD, bounds, group)
    # Each rank's loss looks at its own tokens' weights, as each rank's queries do.
    mask_S = torch.zeros(len(whole_SKD), dtype=torch.bool)
    mask_S[own_L] = True
    (gathered_SKD**2 * weights_SKD * (1 + mask_S)[:, None, None]).sum().backward()
    part_S = torch.zeros(len(whole_SKD))
    part_S[own_L] = whole_SKD[own_L, 0, 0]
    part_S.requires_grad_()
    total_S = sum_context(part_S, group)
    (total_S**2).sum().backward()
    return {
        "own": own_L,
        "gathered": gathered_SKD.detach(),
        "gradient": local_LKD.grad,
        "total": total_S.detach(),
        "total_gradient": part_S.grad,
    }
