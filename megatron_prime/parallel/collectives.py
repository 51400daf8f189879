"""Collectives over a topology: sums of tensors; gathers and broadcasts of objects and votes, which stay on the host."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from megatron_prime.observability.heartbeat import beat
from megatron_prime.parallel.topology import Topology

Item = TypeVar("Item")


def sum_in_place(tensor: torch.Tensor, group: dist.ProcessGroup | None) -> None:
    """Sum a tensor over the ranks of a group, in place; do nothing without a group."""
    if group is not None and group.size() > 1:
        dist.all_reduce(tensor, group=group)


def all_gather_lists(items: list[Item], topology: Topology) -> list[list[Item]]:
    """Return every rank's list, ordered by rank. Collective over all ranks; the items are pickled."""
    if topology.world_size == 1:
        return [items]
    # A report of the watchdog then names the collective that a rank waits in.
    beat("gathering of lists")
    gathered: list[Any] = [None] * topology.world_size
    dist.all_gather_object(gathered, items, group=topology.host_group)
    return gathered


def broadcast_object(item: Item | None, topology: Topology) -> Item:
    """Return rank 0's item on every rank. Collective over all ranks."""
    box = [item]
    beat("broadcast of an object")
    if topology.world_size > 1:
        dist.broadcast_object_list(box, src=0, group=topology.host_group)
    return box[0]  # type: ignore[return-value]


def on_first_rank(action: Callable[[], Item], topology: Topology) -> Item:
    """Return on every rank what rank 0's action returns, or raise its error there. Collective over all ranks.

    Without this, the other ranks would wait in their next collective for a rank 0 that has failed.
    """
    outcome: tuple[Item | None, Exception | None] = (None, None)
    if topology.rank == 0:
        try:
            outcome = (action(), None)
        except Exception as error:  # noqa: BLE001 - it is raised again, on every rank
            outcome = (None, _portable(error))
    result, error = broadcast_object(outcome, topology)
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def _portable(error: Exception) -> Exception:
    """Return an error that other ranks can unpickle: the given one, or one with its type and message."""
    if isinstance(error, OSError | ValueError | TypeError) or type(error).__module__ == "builtins":
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")


def any_rank(flag: bool, topology: Topology) -> bool:
    """Return on every rank whether `flag` is true on at least one rank. Collective over all ranks."""
    beat("vote of all ranks")
    count = torch.tensor([int(flag)], dtype=torch.int32)
    if topology.world_size > 1:
        dist.all_reduce(count, op=dist.ReduceOp.MAX, group=topology.host_group)
    return bool(count.item())


def sum_over_data_and_share(tensors: Sequence[torch.Tensor], topology: Topology) -> None:
    """Sum tensors of the last pipeline stages over the data-parallel ranks, and broadcast the sums to every stage.

    In place. Each data rank fills its own rows and leaves zeros elsewhere, so the sum restores the global tensor
    exactly, in any order of addition. Collective over all ranks; tensors on other stages are overwritten.
    """
    for tensor in tensors:
        if topology.is_last_stage and topology.data_size > 1:
            dist.all_reduce(tensor, group=topology.data_group)
        if topology.pipeline_size > 1:
            dist.broadcast(tensor, src=topology.last_stage_rank, group=topology.pipeline_group)


def sum_named_over_data_and_share(named: dict[str, torch.Tensor], topology: Topology) -> dict[str, float]:
    """Return on every rank the sums of named scalars over the data-parallel ranks of the last stage.

    A rank that has nothing to add may pass an empty dict. Collective over all ranks; the sum is taken in rank order in
    float64, so it is the same everywhere.
    """
    # Tensor and context ranks hold copies of the same values, so one rank per data replica contributes.
    mine: dict[str, float] = {}
    if named and topology.is_last_stage and not topology.tensor_rank and not topology.context_rank:
        # One after the other, each value would wait for the GPU.
        values = torch.stack([value.detach().double() for value in named.values()]).tolist()
        mine = dict(zip(named, values, strict=True))
    total: dict[str, float] = {}
    for of_rank in all_gather_lists([mine], topology):
        for name, value in of_rank[0].items():
            total[name] = total.get(name, 0.0) + value
    return total
