"""Values of device tensors that follow from data of the host: lengths, positions, masks, labels.

A rehearsal has no device, and its device tensors (torch's `meta`) have no content. But a training step reads some of
them: the lengths of sequences, the rows of a mask. Every tensor that comes from the host, and every one that is
computed from such tensors alone, therefore has a twin in host memory, as long as it is not too large. What
depends on weights has none.
"""

from collections.abc import Iterable, ValuesView
from typing import Any

import torch

MOST_NUMBERS = 1 << 26
"""Largest number of elements of a tensor whose values are followed."""
MOST_CONSTANT_REALS = 1 << 22
"""Largest number of elements of a constant tensor of real numbers whose values may change later."""
META = torch.device("meta")
TWIN = "_rehearsed_twin"
"""Attribute of a device tensor that holds its values."""


def twin_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return the values of a device tensor, or None where they are unknown."""
    twin = getattr(tensor, TWIN, None)
    if twin is None or getattr(twin.untyped_storage(), "is_unknown", False):
        return None
    return twin


def set_twin(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Give a device tensor its values, unless they are too many."""
    if values.shape == tensor.shape and _stored(values) <= MOST_NUMBERS:
        tensor._rehearsed_twin = values  # type: ignore[attr-defined]


def forget(tensor: torch.Tensor) -> None:
    """Note that a device tensor's memory now holds unknown values; its views share them."""
    twin = getattr(tensor, TWIN, None)
    if twin is not None:
        twin.untyped_storage().is_unknown = True


def constant(tensor: torch.Tensor, value: float, most_reals: int = MOST_CONSTANT_REALS) -> None:
    """Give a device tensor the same value everywhere.

    One of more than `most_reals` real numbers takes one element of memory, and is unknown once it is written to.
    """
    if tensor.numel() > (most_reals if tensor.is_floating_point() else MOST_NUMBERS):
        set_twin(tensor, torch.full((), value, dtype=tensor.dtype).expand(tensor.shape))
    else:
        set_twin(tensor, torch.full(tensor.shape, value, dtype=tensor.dtype))


def known(values: Any) -> Any:  # noqa: ANN401
    """Return an operation's arguments with device tensors replaced by their twins.

    Raises:
        UnknownValueError: one has none.
    """
    if isinstance(values, torch.Tensor):
        if not values.is_meta:
            return values
        twin = twin_of(values)
        if twin is None:
            raise UnknownValueError
        return twin
    if isinstance(values, (list, tuple)):
        return type(values)(known(each) for each in values)
    if isinstance(values, dict):
        return {key: known(each) for key, each in values.items()}
    if values == META:
        return torch.device("cpu")
    return values


def tensors_in(values: Iterable[Any]) -> list[torch.Tensor]:
    """Return the tensors in an operation's arguments or results, in lists too."""
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple, ValuesView)):
            found += tensors_in(value)
    return found


class UnknownValueError(Exception):
    """The values of a device tensor are not known in a rehearsal."""


def _stored(values: torch.Tensor) -> int:
    """Return the number of elements in memory: a repeated one counts once."""
    return values.untyped_storage().nbytes() // max(1, values.element_size())


def numbers_from(data: Any) -> Any:  # noqa: ANN401
    """Return nested lists with the tensors in them replaced by numbers.

    torch.tensor reads the tensors in a list beneath all modes, where one without content is an error.
    """
    if isinstance(data, torch.Tensor) and not data.dim():
        return data.item()
    if isinstance(data, (list, tuple)):
        return [numbers_from(each) for each in data]
    return data
