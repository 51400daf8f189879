"""Several data sets visited at given rates, resumable at any item.

Each set keeps an order of its own (`ResumableOrder`), and the next item comes from the set that is furthest behind its
share, by Webster's rule: the largest weight / (2 * items taken so far + 1). Shares are thus met at every point of
the run and not on average only, nothing is drawn at random, and the position is that of each set.
"""

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from megatron_prime.data.ordering import ResumableOrder

Item = TypeVar("Item")


class MixedOrder(Generic[Item]):
    """Endless; a small set with a large weight begins its next epoch while a large one is in its first."""

    def __init__(
        self,
        sets: Mapping[str, Sequence[Item]],
        weights: Mapping[str, float],
        fingerprint: str,
        seed: int,
        shuffle: bool,
    ) -> None:
        """Start every set at its first epoch.

        Args:
            sets: name -> items; none empty.
            weights: name -> share, of any scale; the names of `sets`.
            fingerprint: identifies the contents; checked on resuming.
            seed: of the permutations; each set has its own.
            shuffle: as in ResumableOrder.
        """
        assert sets and set(sets) == set(weights)
        self._names = sorted(sets)
        self._weights = {name: float(weights[name]) for name in self._names}
        self._sizes = {name: len(sets[name]) for name in self._names}
        self._orders = {
            name: ResumableOrder(sets[name], f"{fingerprint}/{name}", seed, shuffle, stream=number)
            for number, name in enumerate(self._names, start=1)
        }
        self._taken = dict.fromkeys(self._names, 0)

    @property
    def epoch(self) -> int:
        """Complete passes over all sets: those of the set with the fewest."""
        return min(order.epoch for order in self._orders.values())

    def next(self, num_items: int) -> list[Item]:
        """The next items, the sets in turn by their shares. Advances the position."""
        chosen: list[Item] = []
        for _ in range(num_items):
            name = max(self._names, key=lambda name: self._weights[name] / (2 * self._taken[name] + 1))
            self._taken[name] += 1
            chosen += self._orders[name].next(1)
        return chosen

    def state_dict(self) -> dict[str, Any]:
        """The position, as plain JSON values."""
        sets = {name: order.state_dict() for name, order in self._orders.items()}
        return {"weights": self._weights, "sets": sets}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken.

        Raises:
            ValueError: other data, another seed or shuffling, or other weights, where shares met so far would be
                made up for at once.
        """
        if state.get("weights") != self._weights:
            raise ValueError(
                f"this checkpoint was written with other data.weights ({state.get('weights')}, now {self._weights}), "
                "so the data position cannot be resumed: restore them, or start afresh in a new run_dir"
            )
        for name, order in self._orders.items():
            order.load_state_dict(state["sets"][name])
            self._taken[name] = (
                state["sets"][name]["epoch"] * self._sizes[name] + state["sets"][name]["offset"]
            )


class ResumableItems(Protocol[Item]):
    """An endless order over a data set."""

    @property
    def epoch(self) -> int:
        """Complete passes so far."""
        ...

    def next(self, num_items: int) -> list[Item]:
        """The next items. Advances the position."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The position, as plain JSON values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly there. Raises ValueError for the position of another data set."""
        ...


class Subset(Sequence[Item]):
    """Some rows of a data set, by their places."""

    def __init__(self, items: Sequence[Item], places: Sequence[int]) -> None:
        self._items = items
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, place: Any) -> Any:  # noqa: ANN401 - an index; slices are not needed
        return self._items[self._places[place]]


def make_order(
    items: Sequence[Item],
    group_of: Callable[[int], str],
    weights: Mapping[str, float],
    fingerprint: str,
    seed: int,
    shuffle: bool,
) -> ResumableItems[Item]:
    """One order over all items, or one mixed by weights.

    Args:
        items: of the data set.
        group_of: place of an item -> its key of `weights`.
        weights: data.weights; empty for a plain order.
        fingerprint: of the data set.
        seed: of the permutations.
        shuffle: as in ResumableOrder.

    Raises:
        ValueError: a weight whose group has no items.
    """
    if not weights:
        return ResumableOrder(items, fingerprint, seed, shuffle)
    places = {name: array("q") for name in weights}
    for place in range(len(items)):
        places[group_of(place)].append(place)
    empty = sorted(name for name, found in places.items() if not found)
    if empty:
        raise ValueError(
            f"data.weights names {', '.join(empty)}, but no prompt that is left comes from there: it must be a data "
            "source or a file of the data"
        )
    sets = {name: Subset(items, found) for name, found in places.items()}
    return MixedOrder(sets, weights, fingerprint, seed, shuffle)
