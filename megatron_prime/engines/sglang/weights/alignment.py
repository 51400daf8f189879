"""Whether the slices of a plan are whole quantization blocks. Pure, stdlib only.

A block that lies across the border of two slices would need the largest value of both halves: neither sender has
it. So such a layout is refused for block quantization, and never served with a scale of half a block.
"""

from __future__ import annotations

from megatron_prime.resharding.plan import ReshardPlan

BLOCK_SIZE = 128
"""Rows and columns of a block, as DeepSeek's checkpoints have them and SGLang's kernels expect."""


def num_blocks_of(length: int) -> int:
    """Blocks that rows or columns of this number make, the last one perhaps cut by the end."""
    return -(-length // BLOCK_SIZE)


def scale_name(hf_name: str) -> str:
    """Name of the scales of a weight. Raises ValueError when the name is not a weight's."""
    if not hf_name.endswith(".weight"):
        raise ValueError(f"{hf_name} is not the weight of a linear layer: it has no scales")
    return f"{hf_name}_scale_inv"


def is_aligned(start: int, length: int, size: int, block_size: int = BLOCK_SIZE) -> bool:
    """Whether [start, start + length) of `size` rows is made of whole blocks (the last may be cut by the end)."""
    stop = start + length
    return start % block_size == 0 and (stop % block_size == 0 or stop == size)


def misaligned_slices(plan: ReshardPlan, block_size: int = BLOCK_SIZE) -> dict[str, tuple[int, int]]:
    """The linear weights (as templates) with a slice that cuts a block, and the first such (start, length)."""
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
            f"{len(found)} kinds of weights cannot be quantized in {block_size}x{block_size} blocks where they are sent"
            f" from: of {name} a slice is [{start}, {start + length}), not whole blocks. Choose tensor-parallel sizes"
            f" (training tp={plan.training.tp}, etp={plan.training.etp}; engine tp={plan.engines.tp},"
            f" ep={plan.engines.ep}) that leave multiples of {block_size}, or send bf16"
        )
