"""Equal alignment of the weights of two models of one shape, so that both are multiplied by the same kernels."""

import torch

BYTES = 256
"""The largest alignment that Transformer Engine reports to cuBLAS."""


def align_like(module: torch.nn.Module, other: torch.nn.Module) -> None:
    """Move weights of `module` in memory, where those of the same name in `other` are aligned differently.

    cuBLAS chooses kernels by the alignment of their operands, and other kernels round differently: the process rewards
    of a PRM that equals its reference would not be exactly 0. A trained model's weights lie in one buffer, in which
    Megatron aligns them to 128 bytes; those of a frozen model have allocations of their own, aligned to 512.
    """
    theirs = dict(other.named_parameters())
    for name, parameter in module.named_parameters():
        model = theirs.get(name)
        # Quantized weights have several tensors, and Transformer Engine allocates them alike in both models.
        if model is None or model.shape != parameter.shape or type(parameter.data) is not torch.Tensor:
            continue
        start = _start(model) % BYTES
        if model.dtype == parameter.dtype and _start(parameter) % BYTES != start:
            skipped = start // parameter.element_size()
            memory = parameter.data.new_empty(skipped + parameter.numel())
            parameter.data = memory[skipped:].view(parameter.shape).copy_(parameter.data)


def _start(tensor: torch.Tensor) -> int:
    """Return the distance of a tensor from its allocation in bytes."""
    return int(tensor.storage_offset()) * tensor.element_size()
