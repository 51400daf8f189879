"""A torch dispatch mode that looks at every operation: the memory of its tensors, waits, and collectives."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.pretend_gpu.copies import note_copy
from tests.support.pretend_gpu.findings import FOUND, Kind
from tests.support.pretend_gpu.groups import is_host_group
from tests.support.pretend_gpu.memory import (
    is_emptied,
    is_on_device,
    mark_of,
    put_on_device,
    tensors_in,
)

WAITING = {
    "aten::_local_scalar_dense": "item()",
    "aten::nonzero": "nonzero()",
    "aten::masked_select": "masked_select()",
    "aten::equal": "equal()",
    "aten::_unique2": "unique()",
    "aten::unique_dim": "unique()",
    "aten::unique_consecutive": "unique_consecutive()",
    "aten::bincount": "bincount()",
}
"""Operations whose result or size the host needs at once."""
INDEXING = (
    "aten::index",
    "aten::index_put",
    "aten::index_put_",
    "aten::_unsafe_index",
    "aten::_index_put_impl_",
)
"""Operations that accept indices in host memory, which torch then copies to the device."""
TAKES_HOST_NUMBER = ("aten::fill_", "aten::fill", "aten::masked_fill", "aten::masked_fill_", *INDEXING)
"""Operations besides the pointwise ones that accept one number in host memory."""
READS_NOTHING = ("_like", "aten::set_", "aten::new_", "aten::record_stream")
"""Parts of names of operations that read no element of their tensors."""


class OffloadedReadError(RuntimeError):
    """A tensor was read whose memory had been given up; the operation would end the process."""


class OperationWatch(TorchDispatchMode):
    """Looks at operations before they run, and marks the results of those on the device."""

    def __init__(self) -> None:
        super().__init__()
        self._num_silences = 0

    @contextmanager
    def silence(self) -> Iterator[None]:
        """Look at no operation in the block, and mark no result."""
        self._num_silences += 1
        try:
            yield
        finally:
            self._num_silences -= 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Look at an operation, then run it."""
        kwargs = kwargs or {}
        if self._num_silences:
            return func(*args, **kwargs)
        name = func._schema.name
        tensors = list(tensors_in([*args, *kwargs.values()]))
        on_device = [is_on_device(tensor) for tensor in tensors]
        if name.startswith("c10d::"):
            _look_at_collective(name, args, tensors, on_device)
            return func(*args, **kwargs)
        _look_at_memory(func, name, args, tensors)
        if any(on_device):
            if name in ("aten::copy_", "aten::_foreach_copy_"):
                _look_at_copies(name, args, kwargs)
            else:
                _look_at_places(func, name, args, tensors, on_device)
                _look_at_waits(name, args, kwargs)
        result = _on_gpus_alone(func, args, kwargs)
        if result is None:
            result = func(*args, **kwargs)
        if any(on_device):
            inputs = {id(tensor) for tensor in tensors}
            for tensor in tensors_in([result]):
                if id(tensor) not in inputs:
                    put_on_device(tensor)
        return result


def _look_at_collective(
    name: str, args: tuple[Any, ...], tensors: Sequence[torch.Tensor], on_device: Sequence[bool]
) -> None:
    if "barrier" in name:
        return
    group = next(
        argument for argument in args if isinstance(argument, torch.ScriptObject) and _is_group(argument)
    )
    is_host = is_host_group(dist.ProcessGroup.unbox(group))  # type: ignore[attr-defined]
    if is_host and any(on_device):
        FOUND.note(Kind.DEVICE_IN_HOST_GROUP, name)
    if not is_host and not all(on_device):
        FOUND.note(Kind.HOST_IN_DEVICE_GROUP, name)


def _is_group(script_object: torch.ScriptObject) -> bool:
    return "ProcessGroup" in str(script_object._type())  # type: ignore[attr-defined]


def _look_at_memory(func: Any, name: str, args: tuple[Any, ...], tensors: Sequence[torch.Tensor]) -> None:
    """Look for memory that is gone or that a copy still uses."""
    if func.is_view or any(part in name for part in READS_NOTHING):
        return
    if any(is_emptied(tensor) for tensor in tensors):
        FOUND.note(Kind.OFFLOADED, name)
        raise OffloadedReadError(f"{name} of a tensor whose storage is empty: it is offloaded, or was freed")
    written = args[0] if func._schema.is_mutable and args and isinstance(args[0], torch.Tensor) else None
    # A copy from the device is queued behind the copies before it.
    is_ordered = name == "aten::copy_" and is_on_device(args[1])
    if written is not None and mark_of(written).is_leaving and not is_ordered:
        FOUND.note(Kind.UNFINISHED, f"{name} into memory that a copy still reads")
    if (
        any(mark_of(tensor).is_arriving for tensor in tensors)
        and not is_ordered
        and not _is_to_device(name, args)
    ):
        FOUND.note(Kind.UNFINISHED, f"{name} of memory that a copy has not filled")


def _is_to_device(name: str, args: tuple[Any, ...]) -> bool:
    return name == "aten::copy_" and is_on_device(args[0])


def _look_at_copies(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    is_async = bool(kwargs.get("non_blocking", args[2] if len(args) > 2 else False))
    pairs = [args[:2]] if name == "aten::copy_" else zip(args[0], args[1], strict=True)
    for target, source in pairs:
        # Python assigns a number to a tensor on a GPU as a kernel's argument, which is a copy on a CPU.
        is_number = not source.dim() and not is_on_device(source)
        if is_on_device(target) != is_on_device(source) and not is_number:
            note_copy(target, source, is_async, "copy_()")


def _look_at_places(
    func: Any, name: str, args: tuple[Any, ...], tensors: Sequence[torch.Tensor], on_device: Sequence[bool]
) -> None:
    """Look for tensors in host memory among those on the device."""
    others = [tensor for tensor, is_there in zip(tensors, on_device, strict=True) if not is_there]
    if name in INDEXING and on_device[0]:
        indices = [index for index in args[1] if index is not None and not is_on_device(index)]
        for _ in (index for index in indices if index.dim()):
            FOUND.note(Kind.COPY_TO_DEVICE, "index in host memory")
        others = [tensor for tensor in others if not any(tensor is index for index in indices)]
    takes_numbers = torch.Tag.pointwise in func.tags or name in TAKES_HOST_NUMBER
    if any(tensor.dim() or not takes_numbers for tensor in others):
        FOUND.note(Kind.MIXED, name)


def _look_at_waits(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if name in WAITING:
        FOUND.note(Kind.WAIT, WAITING[name])
    elif name == "aten::repeat_interleave" and kwargs.get("output_size") is None:
        FOUND.note(Kind.WAIT, "repeat_interleave() without output_size")
    elif name in INDEXING and any(
        index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
    ):
        # One number at a mask is filled in without looking for the places.
        is_filled = len(args) > 2 and args[2].numel() == 1 and not is_on_device(args[2])
        if not is_filled:
            FOUND.note(Kind.WAIT, "boolean index")


def _on_gpus_alone(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """Return the result of an operation that torch has for GPUs alone; None for every other operation."""
    if func in (torch.ops.aten.addmm.dtype, torch.ops.aten.addmm.dtype_out):
        total = args[0] + args[1].float() @ args[2].float()
        return kwargs["out"].copy_(total) if "out" in kwargs else total
    if func is torch.ops.aten.histc.default and not args[0].is_floating_point():
        return func(args[0].float(), *args[1:], **kwargs).to(args[0].dtype)
    return None
