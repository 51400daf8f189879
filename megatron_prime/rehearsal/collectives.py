"""The record of a rank's collectives: what it calls on each process group, and in which order."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import torch


class Collective(NamedTuple):
    """One call, as a rank of the group makes it."""

    kind: str
    """all_reduce, all_gather, reduce_scatter, all_to_all, broadcast, gather, scatter, barrier, send or recv."""
    num_bytes: int
    """Bytes of the largest buffer of the call on this rank: of a gather its output, of a scatter its input; 0 for
    pickled objects, whose sizes depend on the data of real ranks."""
    peer: int | None = None
    """Global rank of the other end of a message, or of the root of a broadcast, gather or scatter."""

    @property
    def is_message(self) -> bool:
        """True for a message between two ranks, in which the others of the group take no part."""
        return self.kind in ("send", "recv")


class Group(NamedTuple):
    """A process group, equal on all its ranks."""

    name: str
    """The purpose of the group, as Megatron calls it."""
    ranks: tuple[int, ...]


@dataclass
class GroupCalls:
    """The calls of one rank on one group, in order."""

    sequence: list[Collective] = field(default_factory=list)

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return kind -> (number of calls, bytes)."""
        counts: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        for call in self.sequence:
            counts[call.kind] += 1
            sizes[call.kind] += call.num_bytes
        return {kind: (counts[kind], sizes[kind]) for kind in counts}

    def runs(self) -> list[tuple[Collective, int]]:
        """Return the sequence with equal neighbours counted instead of repeated."""
        return [(call, sum(1 for _ in same)) for call, same in groupby(self.sequence)]


class CollectiveRecord:
    """All calls of a rank, by group. Groups are known from their creation, even if nothing is called on them."""

    def __init__(self) -> None:
        self.groups: dict[Group, GroupCalls] = {}
        self._interned: dict[Collective, Collective] = {}

    def note(self, group: Group, call: Collective) -> None:
        """Append a call."""
        # A run has few different calls and very many of each.
        call = self._interned.setdefault(call, call)
        self.groups.setdefault(group, GroupCalls()).sequence.append(call)


def call_of(method: str, group: Group, args: Sequence[Any]) -> Collective:
    """Return the record of a call of a method of torch's ProcessGroup with these arguments."""
    kind = KINDS[method]
    first = next(_tensors(args), None)
    if first is not None and first.dtype == torch.uint8:
        return Collective(f"{kind} of objects", 0)
    if kind in ("send", "recv"):
        return Collective(kind, _num_bytes(args[0]), group.ranks[args[1]])
    root = next((arg.rootRank for arg in args if hasattr(arg, "rootRank")), None)
    return Collective(
        kind, max(map(_num_bytes, args), default=0), None if root is None else group.ranks[root]
    )


KINDS = {
    "allreduce": "all_reduce",
    "allreduce_coalesced": "all_reduce",
    "reduce": "reduce",
    "broadcast": "broadcast",
    "allgather": "all_gather",
    "allgather_coalesced": "all_gather",
    "all_gather_single": "all_gather",
    "all_gather_single_coalesced": "all_gather",
    "allgather_into_tensor_coalesced": "all_gather",
    "_allgather_base": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "reduce_scatter_single": "reduce_scatter",
    "reduce_scatter_single_coalesced": "reduce_scatter",
    "reduce_scatter_tensor_coalesced": "reduce_scatter",
    "_reduce_scatter_base": "reduce_scatter",
    "alltoall": "all_to_all",
    "alltoall_base": "all_to_all",
    "all_to_all_single": "all_to_all",
    "gather": "gather",
    "scatter": "scatter",
    "barrier": "barrier",
    "send": "send",
    "recv": "recv",
}
"""Method of torch's ProcessGroup -> kind. Names differ between versions of torch."""


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _num_bytes(value: Any) -> int:  # noqa: ANN401
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors([value]))
