"""A torch dispatch mode that stands in for the device: it counts every operation and knows what the host may read."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from megatron_prime.rehearsal.ledger import Ledger
from megatron_prime.rehearsal.results import Results
from megatron_prime.rehearsal.values import (
    META,
    MOST_CONSTANT_REALS,
    MOST_NUMBERS,
    TWIN,
    UnknownValueError,
    constant,
    forget,
    known,
    set_twin,
    tensors_in,
    twin_of,
)

aten = torch.ops.aten
INT32_LIMIT = 2**31
EMPTY = {
    aten.empty.memory_format,
    aten.empty_strided.default,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
}
"""Operations whose results have no content, even of known tensors."""
NO_KERNEL = EMPTY | {
    aten.set_.source_Storage,
    aten.set_.source_Storage_storage_offset,
    aten.set_.source_Tensor,
    aten.detach.default,
    aten.lift_fresh.default,
    aten._unsafe_view.default,
    aten._reshape_alias.default,
    aten.alias.default,
}
"""Operations besides views that launch nothing."""
READS = {
    aten._local_scalar_dense.default: "item()",
    aten.nonzero.default: "nonzero()",
    aten.masked_select.default: "masked_select()",
    aten.equal.default: "equal()",
    aten._unique2.default: "unique()",
    aten.unique_dim.default: "unique()",
    aten.unique_consecutive.default: "unique_consecutive()",
    aten.bincount.default: "bincount()",
    aten.repeat_interleave.Tensor: "repeat_interleave()",
}
"""Operations for whose result, or its size, the host waits."""
INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}
CONSTANTS = {
    aten.zeros.default: 0,
    aten.zeros_like.default: 0,
    aten.new_zeros.default: 0,
    aten.ones.default: 1,
    aten.ones_like.default: 1,
    aten.new_ones.default: 1,
}


NEVER = {aten.isnan.default, aten.isinf.default}
"""Operations that find nothing in a healthy run."""
GUESSED = NEVER | {aten.eq.Tensor, aten.ne.Tensor, aten.eq.Scalar, aten.ne.Scalar, aten.topk.default}
"""Operations whose results are known though their arguments are not; see `_guess`."""


@dataclass
class PhaseCounts:
    """Work of a phase on the device."""

    kernels: int = 0
    """Operations that launch a kernel, about."""
    flops: int = 0
    """FLOPs of matrix products and attention."""
    waits: Counter[str] = field(default_factory=Counter)
    """Operation and place -> how often the host waits there for the device."""
    assumed: Counter[str] = field(default_factory=Counter)
    """Operation and place -> how often a value that the host read had to be assumed."""
    faults: Counter[str] = field(default_factory=Counter)
    """Operation that would fail on a GPU, and place -> how often."""


class Operations(TorchDispatchMode):
    """Runs operations on device tensors without content.

    Args:
        ledger: follows their memory.
        phase: returns the name of the current phase.
        place: returns the line of code that is running.
    """

    def __init__(self, ledger: Ledger, phase: Callable[[], str], place: Callable[[], str]) -> None:
        super().__init__()
        self.phases: dict[str, PhaseCounts] = {}
        self._ledger, self._phase, self._place = ledger, phase, place
        self._is_view: dict[Any, bool] = {}
        self._results = Results()

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run one operation."""
        kwargs = kwargs or {}
        tensors = tensors_in([args, kwargs.values()] if kwargs else args)
        if not any(tensor.is_meta for tensor in tensors) and kwargs.get("device") != META:
            return func(*args, **kwargs)
        counts = self._counts()
        if func in READS or func is aten._to_copy.default or func is aten.copy_.default or func in INDEXING:
            answered, result = self._answer(func, args, kwargs, counts)
            if answered:
                self._follow(result)
                return result
        args = self._on_device(func, args, tensors, counts)
        result = self._results.run(func, args, kwargs)
        self._count(func, args, kwargs, result, counts)
        self._follow(result)
        self._follow_values(func, args, kwargs, result, tensors, counts)
        return result

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Tell torch that nothing is compiled here: its guard would cost as much as a short operation."""
        return False

    def _counts(self) -> PhaseCounts:
        counts = self.phases.get(name := self._phase())
        if counts is None:
            counts = self.phases[name] = PhaseCounts()
            self._ledger.touch()
        return counts

    def _follow(self, result: Any) -> None:  # noqa: ANN401
        for tensor in tensors_in((result,)):
            if tensor.is_meta:
                self._ledger.see(tensor.untyped_storage())

    def _count(
        self,
        func: Any,  # noqa: ANN401
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,  # noqa: ANN401
        counts: PhaseCounts,
    ) -> None:
        is_view = self._is_view.get(func)
        if is_view is None:
            is_view = self._is_view[func] = func.is_view or func in NO_KERNEL
        if is_view:
            return
        counts.kernels += 1
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            if func is aten.addmm.dtype_out:
                args, kwargs = args[:3], {}
            counts.flops += formula(*args, **kwargs, out_val=result)

    def _on_device(
        self,
        func: Any,  # noqa: ANN401
        args: tuple[Any, ...],
        tensors: list[torch.Tensor],
        counts: PhaseCounts,
    ) -> tuple[Any, ...]:
        """Return the arguments with tensors of the host moved to the device; note those that a GPU would refuse."""
        strays = [tensor for tensor in tensors if not tensor.is_meta and tensor.dim()]
        if not strays or func is aten.copy_.default:
            return args
        if func in INDEXING:
            counts.waits[f"copy of an index to the device: {self._place()}"] += 1
        else:
            counts.faults[f"host and device tensors in {func}: {self._place()}"] += 1
        return _moved(args)

    def _answer(
        self,
        func: Any,  # noqa: ANN401
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        counts: PhaseCounts,
    ) -> tuple[bool, Any]:
        """Run an operation by which host and device exchange data; return False for others."""
        if func in (aten._to_copy.default, aten.copy_.default):
            return self._copy(func, args, kwargs, counts)
        if func in INDEXING and not any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            return False, None
        if func in INDEXING and len(args) > 2 and args[2].numel() == 1 and len(args[1]) == 1:
            # One number at a mask is filled in, without looking for the places.
            return True, args[0] if func._schema.is_mutable else torch.empty_like(args[0])
        operation = READS.get(func, "boolean index")
        counts.waits[f"{operation}: {self._place()}"] += 1
        counts.kernels += 1
        if func in INDEXING:
            return True, self._masked(func, args, counts)
        try:
            result = func(*known(args), **known(kwargs))
        except UnknownValueError:
            counts.assumed[f"{operation}: {self._place()}"] += 1
            result = func(*_assumed(args), **_assumed(kwargs))
        return True, _to_device(result)

    def _masked(self, func: Any, args: tuple[Any, ...], counts: PhaseCounts) -> Any:  # noqa: ANN401
        """Run an operation with a mask as index."""
        indices = []
        for index in args[1]:
            if index is None or index.dtype not in (torch.bool, torch.uint8):
                indices.append(index)
                continue
            mask = twin_of(index) if index.is_meta else index
            if mask is None:
                counts.assumed[f"boolean index: {self._place()}"] += 1
                mask = torch.ones(index.shape, dtype=torch.bool)
            for places in mask.nonzero(as_tuple=True):
                moved = torch.empty_like(places, device=META)
                set_twin(moved, places)
                self._follow(moved)
                indices.append(moved)
        arguments = (args[0], indices, *args[2:])
        result = func(*arguments)
        self._follow_values(func, arguments, {}, result, tensors_in(arguments), counts)
        return result

    def _copy(
        self,
        func: Any,  # noqa: ANN401
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        counts: PhaseCounts,
    ) -> tuple[bool, Any]:
        """Copy between host and device."""
        source = args[0] if func is aten._to_copy.default else args[1]
        target_is_device = (
            args[0].is_meta if func is aten.copy_.default else kwargs.get("device", source.device) == META
        )
        if source.is_meta == target_is_device:
            return False, None
        is_async = bool(kwargs.get("non_blocking")) or (func is aten.copy_.default and args[2:3] == (True,))
        counts.kernels += 1
        if not is_async and source.numel() and not (target_is_device and not source.dim()):
            side = "device" if target_is_device else "host"
            counts.waits[f"blocking copy to the {side}: {self._place()}"] += 1
        if not target_is_device:
            values = twin_of(source)
            if values is None:
                counts.assumed[f"copy to the host: {self._place()}"] += 1
                values = torch.ones(source.shape, dtype=source.dtype)
            if func is aten._to_copy.default:
                return True, values.to(dtype=kwargs.get("dtype") or source.dtype, copy=True)
            return True, args[0].copy_(values)
        if func is aten._to_copy.default:
            made = torch.empty(source.shape, dtype=kwargs.get("dtype") or source.dtype, device=META)
            set_twin(made, source.to(dtype=made.dtype, copy=True))
            return True, made
        _copy_values(args[0], source)
        return True, args[0]

    def _follow_values(
        self,
        func: Any,  # noqa: ANN401
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,  # noqa: ANN401
        tensors: list[torch.Tensor],
        counts: PhaseCounts,
    ) -> None:
        """Compute the values of the results, where those of all arguments are known."""
        if func in CONSTANTS:
            # What models are made of, such as the moments of thousands of experts, would fill the host's memory.
            constant(result, CONSTANTS[func], 0 if self._phase() == "build" else MOST_CONSTANT_REALS)
        if func in CONSTANTS or func in EMPTY:
            return
        devices = [tensor for tensor in tensors if tensor.is_meta]
        if devices and func not in GUESSED and not any(hasattr(each, TWIN) for each in devices):
            return
        made = [tensor for tensor in tensors_in((result,)) if tensor.is_meta]
        values = self._values(func, args, kwargs, made)
        if func._schema.is_mutable:
            if values is None:
                _forget_written(func, args, kwargs)
        elif values is None:
            _guess(func, args, made)
        else:
            for tensor, twin in zip(made, tensors_in((values,)), strict=False):
                set_twin(tensor, twin)
                self._look_for_overflow(func, args, kwargs, twin, counts)

    def _values(
        self,
        func: Any,  # noqa: ANN401
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        made: list[torch.Tensor],
    ) -> Any:  # noqa: ANN401
        """Run an operation on the values of its arguments, in place if it does so; return None if they are unknown."""
        is_large = not func.is_view and any(tensor.numel() > MOST_NUMBERS for tensor in made)
        if is_large or torch.Tag.nondeterministic_seeded in func.tags:
            return None
        try:
            return func(*known(args), **known(kwargs))
        except (UnknownValueError, RuntimeError, NotImplementedError):
            return None

    def _look_for_overflow(
        self,
        func: Any,  # noqa: ANN401
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        twin: torch.Tensor,
        counts: PhaseCounts,
    ) -> None:
        """Compute sums and products of int32 again as int64, and compare."""
        if twin.dtype != torch.int32 or func not in (aten.add.Tensor, aten.mul.Tensor, aten.cumsum.default):
            return
        wide = [known(arg).long() if isinstance(arg, torch.Tensor) else arg for arg in args]
        exact = func(*wide, **{key: value for key, value in kwargs.items() if key != "dtype"})
        if exact.numel() and int(exact.abs().max()) >= INT32_LIMIT:
            counts.faults[f"int32 overflow in {func}: {self._place()}"] += 1


def _moved(values: Any) -> Any:  # noqa: ANN401
    """Return arguments with the tensors of the host moved to the device."""
    if isinstance(values, torch.Tensor):
        return values if values.is_meta or not values.dim() else _to_device(values)
    if isinstance(values, (list, tuple)):
        return type(values)(_moved(each) for each in values)
    return values


def _to_device(values: Any) -> Any:  # noqa: ANN401
    """Return results that were computed on the host as device tensors."""
    if isinstance(values, torch.Tensor):
        made = torch.empty(values.shape, dtype=values.dtype, device=META)
        set_twin(made, values)
        return made
    if isinstance(values, (list, tuple)):
        return type(values)(_to_device(each) for each in values)
    return values


def _assumed(values: Any) -> Any:  # noqa: ANN401
    """Return arguments with device tensors of unknown content replaced: 1, and False for truth values."""
    if isinstance(values, torch.Tensor) and values.is_meta:
        twin = twin_of(values)
        if twin is not None:
            return twin
        value = 0 if values.dtype == torch.bool else 1
        return torch.full(values.shape, value, dtype=values.dtype)
    if isinstance(values, (list, tuple)):
        return type(values)(_assumed(each) for each in values)
    return values


def _copy_values(target: torch.Tensor, source: torch.Tensor) -> None:
    twin = getattr(target, "_rehearsed_twin", None)
    if twin is not None:
        twin.copy_(source)
    else:
        set_twin(target, source.to(dtype=target.dtype, copy=True).expand(target.shape).clone())


def _forget_written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ANN401
    """Forget the values of what an operation writes to."""
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            for tensor in tensors_in((value,)):
                forget(tensor)


def _guess(func: Any, args: tuple[Any, ...], made: list[torch.Tensor]) -> None:  # noqa: ANN401
    """Give results that depend on weights the values that they have in a healthy run, where the host decides by them.

    All numbers are finite, and experts are chosen evenly.
    """
    if func in NEVER:
        constant(made[0], 0)
    elif func in (aten.eq.Tensor, aten.ne.Tensor) and args[0] is args[1]:
        constant(made[0], func is aten.eq.Tensor)
    elif func in (aten.eq.Scalar, aten.ne.Scalar) and args[1] in (math.inf, -math.inf):
        constant(made[0], func is aten.ne.Scalar)
    elif func is aten.topk.default:
        indices, count = made[1], args[0].shape[-1]
        places = torch.arange(indices.numel()).view(indices.shape) % count
        set_twin(indices, places)
