"""The time that collectives take by themselves: they are recorded, and repeated with nothing in between."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

RECORDED = (
    *("all_reduce", "broadcast", "all_gather", "all_gather_object", "barrier"),
    *("all_gather_into_tensor", "reduce_scatter_tensor", "all_to_all_single"),
)
"""Functions of torch.distributed that the compared methods may call."""
Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """Return the collectives that are called inside the block, with zeros in place of their tensors."""
    calls: list[Call] = []
    kept = {name: getattr(dist, name) for name in RECORDED}

    def recording(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            # Zeros of its own, since a repeated sum in place would grow without limit.
            calls.append((function, _zeros(args), _zeros(kwargs)))
            return function(*args, **kwargs)

        return call

    for name, function in kept.items():
        setattr(dist, name, recording(function))
    try:
        yield calls
    finally:
        for name, function in kept.items():
            setattr(dist, name, function)


def repeated(calls: list[Call]) -> tuple[float, float]:
    """Return the seconds and the CPU seconds of this process for the calls by themselves; every rank calls it."""
    dist.barrier()
    start = time.perf_counter(), time.process_time()
    for function, args, kwargs in calls:
        handle = function(*args, **kwargs)
        if kwargs.get("async_op") and handle is not None:
            handle.wait()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def num_bytes(calls: list[Call]) -> int:
    """Return the bytes of the first tensor of each call: what a rank contributes."""
    firsts = (
        next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)
        for _, args, kwargs in calls
    )
    return sum(tensor.numel() * tensor.element_size() for tensor in firsts if tensor is not None)


def _zeros(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.zeros_like(value)
    if isinstance(value, dict):
        return {key: _zeros(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_zeros(each) for each in value)
    return value
