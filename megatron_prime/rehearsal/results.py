"""Shapes of the results of operations, remembered: torch takes up to a millisecond to find one without content."""

from collections.abc import Iterable
from typing import Any

import torch

aten = torch.ops.aten
LONGEST = 16
"""Largest number of tensors in a list whose results are remembered."""


class Results:
    """Runs operations on tensors without content.

    Results depend on the shapes and types of tensors and on the values of everything else. Views, and operations on
    many tensors at once, are left to torch.
    """

    def __init__(self) -> None:
        self._made: dict[Any, Any] = {}
        self._is_left: dict[Any, bool] = {}

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        """Return the results of an operation."""
        if func is aten.addmm.dtype_out:
            return kwargs["out"]  # torch has it for GPUs alone
        if func is aten.histc.default:
            return torch.empty(args[1], dtype=args[0].dtype, device=args[0].device)
        is_left = self._is_left.get(func)
        if is_left is None:
            is_left = self._is_left[func] = func.is_view or "set_" in str(func) or "foreach" in str(func)
        key = None if is_left else _key(func, args, kwargs)
        if key is None:
            return func(*args, **kwargs)
        made = self._made.get(key)
        if made is None:
            result = func(*args, **kwargs)
            self._made[key] = _form(result, args, kwargs)
            return result
        return _filled(made, args, kwargs)


def _key(func: Any, args: Iterable[Any], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:  # noqa: ANN401
    parts: list[Any] = [func]
    for value in (*args, *kwargs.items()):
        part = _part(value)
        if part is NotImplemented:
            return None
        parts.append(part)
    return tuple(parts)


def _part(value: Any) -> Any:  # noqa: ANN401
    """Return what the shapes of results depend on; NotImplemented for what is not understood."""
    if isinstance(value, torch.Tensor):
        if not value.is_meta and value.dim():
            return NotImplemented
        return value.shape, value.stride(), value.dtype, value.is_meta
    if isinstance(value, (list, tuple)):
        if len(value) > LONGEST:
            return NotImplemented
        parts = tuple(_part(each) for each in value)
        return NotImplemented if NotImplemented in parts else (type(value), *parts)
    if value is None or isinstance(value, (bool, int, float, str)):
        return type(value), value
    if isinstance(value, (torch.dtype, torch.device, torch.layout, torch.memory_format)):
        return value
    return NotImplemented


def _form(result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    """Return how to make a result again: the place of an argument that it is, or sizes."""
    if isinstance(result, torch.Tensor):
        for place, value in [*enumerate(args), *kwargs.items()]:
            if value is result:
                return "argument", place
        return "tensor", tuple(result.shape), result.stride(), result.dtype
    if isinstance(result, (list, tuple)):
        return "several", type(result), [_form(each, args, kwargs) for each in result]
    return "value", result


def _filled(form: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    match form[0]:
        case "tensor":
            return torch.empty_strided(form[1], form[2], dtype=form[3], device="meta")
        case "argument":
            return kwargs[form[1]] if isinstance(form[1], str) else args[form[1]]
        case "several":
            return form[1](_filled(each, args, kwargs) for each in form[2])
        case _:
            return form[1]
