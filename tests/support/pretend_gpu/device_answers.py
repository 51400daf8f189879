"""A torch function mode that answers as if marked tensors lay on a GPU, and turns moves into marked copies."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from megatron_prime.parallel.cpu_shim import CUDA_TYPE_NAMES
from tests.support.pretend_gpu.copies import note_copy
from tests.support.pretend_gpu.findings import FOUND, Kind
from tests.support.pretend_gpu.memory import is_on_device, mark_of, pin, put_on_device, tensors_in

HOST = torch.device("cpu")
TENSOR = torch.Tensor
MAKERS_FROM_DATA = (torch.tensor, torch.as_tensor, torch.asarray)
"""Functions that copy what Python holds: to a device, blocking."""


def device() -> torch.device:
    """Return the GPU of this process."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def names_device(place: object) -> bool:
    """Return whether a `device` argument names a GPU: torch takes a number as one too."""
    if isinstance(place, torch.device):
        return place.type == "cuda"
    if isinstance(place, str):
        return place.startswith("cuda")
    return isinstance(place, int) and not isinstance(place, bool)


class DeviceAnswers(TorchFunctionMode):
    """Answers for marked tensors; everything else passes through.

    Args:
        silence: context in which operations are not looked at, for the copies that this mode makes.
    """

    def __init__(self, silence: Callable[[], Any]) -> None:
        super().__init__()
        self._silence = silence
        self._answers: dict[Any, Callable[..., Any]] = {
            TENSOR.device.__get__: lambda t: device() if is_on_device(t) else HOST,
            TENSOR.is_cuda.__get__: is_on_device,
            TENSOR.is_cpu.__get__: lambda t: not is_on_device(t),
            TENSOR.get_device: lambda t: device().index if is_on_device(t) else -1,
            TENSOR.is_pinned: lambda t, *_: mark_of(t).is_pinned,
            TENSOR.pin_memory: self._pinned,
            TENSOR.cuda: lambda t, place=None, non_blocking=False, **_: self._moved(t, True, non_blocking),
            TENSOR.cpu: lambda t, **_: self._moved(t, False),
            TENSOR.to: self._to,
            TENSOR.type: self._type,
            TENSOR.new_tensor: self._new_tensor,
            TENSOR.numpy: self._host_view,
            TENSOR.__array__: self._host_view,
            TENSOR.tolist: self._tolist,
            TENSOR.__deepcopy__: self._deep_copy,
            torch._C._nn._parse_to: _unanswered(torch._C._nn._parse_to),
        }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Answer a call of torch's Python functions."""
        kwargs = kwargs or {}
        answer = self._answers.get(func)
        if answer is not None and (func is not TENSOR.device.__get__ or not args[0].is_meta):
            return answer(*args, **kwargs)
        if not names_device(kwargs.get("device")):
            if kwargs.get("pin_memory"):
                return pin(func(*args, **kwargs | {"pin_memory": False}))
            return func(*args, **kwargs)
        with self._silence():
            made = func(*args, **kwargs | {"device": HOST})
            if func in MAKERS_FROM_DATA:
                made = made.clone()
        for tensor in tensors_in([made]):
            put_on_device(tensor)
        if func in MAKERS_FROM_DATA and made.numel():
            FOUND.note(Kind.COPY_TO_DEVICE, func.__name__)
        return made

    def _moved(
        self,
        tensor: torch.Tensor,
        to_device: bool,
        is_async: bool = False,
        dtype: torch.dtype | None = None,
        is_copied: bool = False,
    ) -> torch.Tensor:
        """Return the tensor in the other kind of memory, or itself (or a cast of it) if it lies there."""
        if is_on_device(tensor) == to_device:
            return tensor.to(dtype=dtype or tensor.dtype, copy=is_copied)
        with self._silence():
            moved = tensor.to(dtype=dtype or tensor.dtype, copy=True)
        if to_device:
            put_on_device(moved)
        elif is_async:
            pin(moved)  # as torch allocates it
        note_copy(moved, tensor, is_async, "to()")
        return moved

    def _to(self, tensor: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        """Answer the three forms of Tensor.to: (device, dtype), (dtype), (other), each with (non_blocking, copy)."""
        place, dtype = named.get("device"), named.get("dtype")
        flags: list[bool] = []
        for argument in [*arguments, *([named["other"]] if "other" in named else [])]:
            if isinstance(argument, torch.dtype):
                dtype = argument
            elif isinstance(argument, torch.Tensor):
                place, dtype = (device() if is_on_device(argument) else HOST), argument.dtype
            elif isinstance(argument, bool):
                flags.append(argument)
            elif argument is not None:
                place = argument
        is_async, is_copied = (
            (*flags, named.get("non_blocking", False))[0],
            named.get("copy", flags[1:] == [True]),
        )
        if place is None:
            return tensor.to(dtype=dtype or tensor.dtype, copy=is_copied)
        if not names_device(place) and torch.device(place).type != "cpu":
            return tensor.to(*arguments, **named)  # to no memory at all
        return self._moved(tensor, names_device(place), is_async, dtype, is_copied)

    def _type(self, tensor: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        name = None if arguments or named else CUDA_TYPE_NAMES.get(tensor.dtype)
        return name if name and is_on_device(tensor) else tensor.type(*arguments, **named)

    def _pinned(self, tensor: torch.Tensor, *_: Any) -> torch.Tensor:
        if mark_of(tensor).is_pinned:
            return tensor
        with self._silence():
            return pin(tensor.clone())

    def _new_tensor(self, tensor: torch.Tensor, data: Any, **named: Any) -> torch.Tensor:
        to_device = names_device(named.pop("device", device() if is_on_device(tensor) else HOST))
        with self._silence():
            made = tensor.new_tensor(data, **named)
        if to_device:
            FOUND.note(Kind.COPY_TO_DEVICE, "new_tensor")
            put_on_device(made)
        return made

    def _host_view(self, tensor: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        if is_on_device(tensor):
            FOUND.note(Kind.HOST_VIEW, "numpy()")
        with torch._C.DisableTorchFunction():
            return tensor.numpy(*arguments, **named)

    def _tolist(self, tensor: torch.Tensor) -> Any:
        if is_on_device(tensor):
            FOUND.note(Kind.WAIT, "tolist()")
        elif mark_of(tensor).is_arriving:
            FOUND.note(Kind.UNFINISHED, "tolist()")
        with torch._C.DisableTorchFunction():
            return tensor.tolist()

    def _deep_copy(self, tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
        copied = tensor.__deepcopy__(memo)
        return put_on_device(copied) if is_on_device(tensor) else copied


def _unanswered(func: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that no mode answers."""

    def call(*arguments: Any, **named: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return func(*arguments, **named)

    return call
