"""Copies between host and device memory: those that block, and those that run beside the host."""

import torch

from tests.support.pretend_gpu.findings import FOUND, Kind
from tests.support.pretend_gpu.memory import begin_arrival, begin_departure, mark_of


def note_copy(target: torch.Tensor, source: torch.Tensor, is_async: bool, operation: str) -> None:
    """Count a copy from one side to the other, as torch's CUDA backend carries it out.

    A blocking copy waits for everything that is queued on its stream, in either direction. An asynchronous one does
    only if the host's memory is pinned; until the host waits, that memory must neither be read nor overwritten.
    """
    if not source.numel():
        return
    to_device = mark_of(target).is_device
    host = source if to_device else target
    if not is_async:
        FOUND.note(Kind.COPY_TO_DEVICE if to_device else Kind.COPY_TO_HOST, operation)
        return
    if not mark_of(host).is_pinned:
        FOUND.note(Kind.PAGEABLE, operation)
    (begin_departure if to_device else begin_arrival)(host)
