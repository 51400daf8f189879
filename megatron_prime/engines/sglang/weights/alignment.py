"""Checks that the slices of a plan are whole quantization blocks.

The scale of a block needs the largest value of the whole block. A block that lies across the border of two slices has
no sender that knows it, so such a layout is refused for block quantization instead of being served with wrong scales.
"""

from __future__ import annotations

from megatron_prime.engines.sglang.loader.wire import BLOCK_SIZE
from megatron_prime.resharding.plan import ReshardPlan


def num_blocks_of(length: int) -> int:
    """Return the number of blocks that cover so many rows or columns; the last one may be smaller."""
    return -(-length // BLOCK_SIZE)


def scale_name(hf_name: str) -> str:
    """Return the name of a weight's scales. Raises ValueError when the name is not that of a weight."""
    if not hf_name.endswith(".weight"):
        raise ValueError(f"{hf_name} is not the weight of a linear layer: it has no scales")
    return f"{hf_name}_scale_inv"


def is_aligned(start: int, length: int, size: int, block_size: int = BLOCK_SIZE) -> bool:
    """Return whether [start, start + length) of `size` rows consists of whole blocks; the last may be smaller."""
    stop = start + length
    return start % block_size == 0 and (stop % block_size == 0 or stop == size)


def misaligned_slices(plan: ReshardPlan, block_size: int = BLOCK_SIZE) -> dict[str, tuple[int, int]]:
    """Return the linear weights (as templates) with a slice that cuts a block, and the first such (start, length)."""
    found: dict[str, tuple[int, int]] = {}
    for flow in plan.flows:
        tensor, size = flow.group.tensor, flow.group.dims[flow.group.dim]
        if tensor.is_linear and not is_aligned(flow.hf_start, flow.length, size, block_size):
            found.setdefault(tensor.name, (flow.hf_start, flow.length))
    return found


def check_aligned(plan: ReshardPlan, block_size: int = BLOCK_SIZE) -> None:
    """Raise ValueError unless every slice of a linear weight can be quantized by its sender alone."""
    found = misaligned_slices(plan, block_size)
    if found:
        name, (start, length) = next(iter(found.items()))
        raise ValueError(
            f"{len(found)} kinds of weights cannot be quantized in {block_size}x{block_size} blocks by their senders:"
            f" the slice [{start}, {start + length}) of {name} cuts a block. Choose tensor-parallel sizes"
            f" (training tp={plan.training.tp}, etp={plan.training.etp}; engine tp={plan.engines.tp},"
            f" ep={plan.engines.ep}) that leave multiples of {block_size}, or send bf16"
        )
