"""Streams over one data set or over several that are mixed at given rates, resumable at any item.

Each data set keeps an order of its own (`ResumableOrder`), and the next item comes from the data set that is furthest
behind its share by Webster's rule: the one with the largest weight / (2 * items taken so far + 1). Shares therefore
hold at every point of the run and not only on average, nothing is drawn at random, and the position of the mixture is
the position of each data set.
"""

from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from megatron_prime.data.columns import ColumnTable
from megatron_prime.data.ordering import ResumableOrder

Item = TypeVar("Item")


class ResumableStream(Protocol[Item]):
    """An endless stream over a data set: epochs follow each other."""

    @property
    def epoch(self) -> int:
        """Number of complete passes so far."""
        ...

    def next(self, num_items: int) -> list[Item]:
        """Return the next items and advance the position, into the next epoch where one ends."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the position as plain JSON values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken.

        Raises:
            ValueError: If data, seed, shuffling or weights differ from those the state was taken with.
        """
        ...


class MixedOrder(Generic[Item]):
    """An endless order over several data sets.

    A small data set with a large weight begins its next epoch while a large one is still in its first.
    """

    def __init__(
        self,
        sets: Mapping[str, Sequence[Item]],
        weights: Mapping[str, float],
        fingerprint: str,
        seed: int,
        shuffle: bool,
    ) -> None:
        """Start every data set at its first epoch.

        Args:
            sets: Name of each data set -> its items, at least one.
            weights: Name of each data set -> its share, on any scale.
            fingerprint: Identifies the contents; checked on resuming.
            seed: Seed of the permutations; each data set has permutations of its own.
            shuffle: False visits the items of each data set in their order.
        """
        assert sets and set(sets) == set(weights)
        self._names = sorted(sets)
        self._weights = {name: float(weights[name]) for name in self._names}
        self._sizes = {name: len(sets[name]) for name in self._names}
        # Streams are numbered from 1: stream 0 is the order of an unmixed data set.
        self._orders = {
            name: ResumableOrder(sets[name], f"{fingerprint}/{name}", seed, shuffle, stream=number)
            for number, name in enumerate(self._names, start=1)
        }
        self._taken = dict.fromkeys(self._names, 0)

    @property
    def epoch(self) -> int:
        """Number of complete passes over every data set: the minimum over the data sets."""
        return min(order.epoch for order in self._orders.values())

    def next(self, num_items: int) -> list[Item]:
        """Return the next items, choosing the data set of each by its share, and advance the position."""
        chosen: list[Item] = []
        for _ in range(num_items):
            # Ties go to the first name in sorted order, so that the choice is the same on every rank.
            name = max(self._names, key=lambda name: self._weights[name] / (2 * self._taken[name] + 1))
            self._taken[name] += 1
            chosen += self._orders[name].next(1)
        return chosen

    def state_dict(self) -> dict[str, Any]:
        """Return the position as plain JSON values."""
        sets = {name: order.state_dict() for name, order in self._orders.items()}
        return {"weights": self._weights, "sets": sets}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken.

        Raises:
            ValueError: If data, seed, shuffling or weights differ from those the state was taken with.
        """
        # With other weights, Webster's rule would at once make up for the shares of all items taken so far.
        if state.get("weights") != self._weights:
            raise ValueError(
                f"this checkpoint was written with other data.weights ({state.get('weights')}, now {self._weights}), "
                "so the data position cannot be resumed: restore them, or start afresh in a new run_dir"
            )
        for name, order in self._orders.items():
            order.load_state_dict(state["sets"][name])
            # The number of items taken is not stored, because it follows from the position of the data set.
            self._taken[name] = (
                state["sets"][name]["epoch"] * self._sizes[name] + state["sets"][name]["offset"]
            )


class Subset(Sequence[Item]):
    """A view of some items of a data set, selected by their indices."""

    def __init__(self, items: Sequence[Item], indices: Sequence[int]) -> None:
        self._items = items
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401 - an index; slices are not needed
        return self._items[self._indices[index]]


def make_stream(
    table: ColumnTable[Item], fingerprint: str, seed: int, shuffle: bool, weights: Mapping[str, float]
) -> ResumableStream[Item]:
    """Return a stream over a table, mixed by weights where there are any.

    Args:
        table: The data set; `table.groups` names the weight of each row.
        fingerprint: Identifies the contents; checked on resuming.
        seed: Seed of the permutations.
        shuffle: False visits rows in file order every epoch.
        weights: `data.weights`, the share of each group; empty for a single unmixed order.

    Raises:
        ValueError: If a weight names a group without rows.
    """
    if not weights:
        return ResumableOrder(table, fingerprint, seed, shuffle)
    indices = {name: array("q") for name in weights}
    for index in range(len(table)):
        indices[table.groups[index]].append(index)
    empty = sorted(name for name, group in indices.items() if not group)
    if empty:
        raise ValueError(
            f"data.weights names {', '.join(empty)}, but no row that is left comes from there: each weight must name a "
            "data source or a file of the data"
        )
    sets = {name: Subset(table, group) for name, group in indices.items()}
    return MixedOrder(sets, weights, fingerprint, seed, shuffle)
