"""How the training ranks split the work of a rollout among them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Gather(Protocol):
    """All-gather of picklable objects over the training ranks."""

    def __call__(self, items: list[Item], /) -> list[list[Item]]:
        """Collective: every rank gives its list and gets the lists of all ranks, ordered by rank."""
        ...


def gather_alone(items: list[Item], /) -> list[list[Item]]:
    """The all-gather of a single process."""
    return [items]


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the training ranks. Every rank must make the same sequence of `gather_all` calls."""

    rank: int = 0
    """0 .. world_size - 1."""
    world_size: int = 1
    gather: Gather = gather_alone

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} is not among the {self.world_size} ranks")

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This rank's contiguous part of items; parts differ by at most one item and join to the whole."""
        start = len(items) * self.rank // self.world_size
        stop = len(items) * (self.rank + 1) // self.world_size
        return list(items[start:stop])

    def gather_all(self, share: list[Item]) -> list[Item]:
        """Join the ranks' shares in rank order: the inverse of `share`. Collective."""
        parts = self.gather(share)
        if len(parts) != self.world_size:
            raise RuntimeError(f"the gather returned {len(parts)} lists for {self.world_size} ranks")
        return [item for part in parts for item in part]
