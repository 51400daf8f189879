"""Distribution of rollout work over the training ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Gather(Protocol):
    """An all-gather of picklable objects over the training ranks."""

    def __call__(self, items: list[Item], /) -> list[list[Item]]:
        """Return the lists of all ranks, ordered by rank. Collective."""
        ...


class Broadcast(Protocol):
    """A broadcast of a picklable object to the training ranks."""

    def __call__(self, item: Item | None, /) -> Item:
        """Return rank 0's item. Collective."""
        ...


def gather_alone(items: list[Item], /) -> list[list[Item]]:
    """Gather the list of a single process."""
    return [items]


@dataclass(frozen=True, slots=True)
class Ranks:
    """The rank of this process and the collectives it needs. Every rank must call them in the same order."""

    rank: int = 0
    """Rank of this process, 0 .. world_size - 1."""
    world_size: int = 1
    gather: Gather = gather_alone
    broadcast: Broadcast | None = None
    """By default a gather."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} is not among the {self.world_size} ranks")

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Return this rank's contiguous share of items; the sizes of the ranks' shares differ by at most one."""
        # Each bound is computed from the same formula on both neighbouring ranks, so the shares join without gaps.
        start = len(items) * self.rank // self.world_size
        stop = len(items) * (self.rank + 1) // self.world_size
        return list(items[start:stop])

    def from_first(self, item: Item | None) -> Item:
        """Return rank 0's item on every rank; what the others pass is ignored. Collective."""
        if self.broadcast is not None:
            return self.broadcast(item)
        [shared] = self.gather_all([item] if self.rank == 0 else [])
        return shared  # type: ignore[return-value]

    def gather_all(self, share: list[Item]) -> list[Item]:
        """Concatenate the shares of all ranks in rank order, the inverse of `share`. Collective."""
        parts = self.gather(share)
        if len(parts) != self.world_size:
            raise RuntimeError(f"the gather returned {len(parts)} lists for {self.world_size} ranks")
        return [item for part in parts for item in part]
