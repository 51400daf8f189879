"""The order in which a data set is visited: a seeded permutation an epoch, resumable at any row."""

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np

Item = TypeVar("Item")


class ResumableOrder(Generic[Item]):
    """Endless passes over `items`, without repetition inside an epoch.

    Epoch e is the permutation of numpy's counter-based Philox generator keyed on (seed, e), so no generator state is
    carried: the position is two numbers, and it is the same on every machine.
    """

    def __init__(
        self, items: Sequence[Item], fingerprint: str, seed: int, shuffle: bool, stream: int = 0
    ) -> None:
        """Start at epoch 0, row 0.

        Args:
            items: what to visit; not empty.
            fingerprint: identifies the contents of `items`; checked on resuming.
            seed: of the permutations, 0 or more.
            shuffle: False visits rows in file order every epoch.
            stream: data sets that are visited side by side shuffle alike unless this differs.
        """
        if not items:
            raise ValueError("there is nothing to visit: the data set is empty")
        self._items = items
        self._fingerprint = fingerprint
        self._seed = seed
        self._shuffle = shuffle
        self._stream = stream
        self._seek(0, 0)

    @property
    def epoch(self) -> int:
        """Complete passes so far."""
        return self._epoch

    def next(self, num_items: int) -> list[Item]:
        """The next items, going on into the next epoch where one ends. Advances the position."""
        chosen = []
        for _ in range(num_items):
            if self._offset == len(self._items):
                self._seek(self._epoch + 1, 0)
            chosen.append(self._items[int(self._permutation[self._offset])])
            self._offset += 1
        return chosen

    def state_dict(self) -> dict[str, Any]:
        """The position, as plain JSON values; the size does not grow with the data."""
        return {
            "epoch": self._epoch,
            "offset": self._offset,
            "seed": self._seed,
            "shuffle": self._shuffle,
            "fingerprint": self._fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken.

        Raises:
            ValueError: the state belongs to other data, another seed or another shuffling, where going on would visit
                some rows twice and others never.
        """
        mine = self.state_dict()
        for name, meaning in (
            ("fingerprint", "data set"),
            ("seed", "seed"),
            ("shuffle", "data.shuffle setting"),
        ):
            if state.get(name) != mine[name]:
                raise ValueError(
                    f"this checkpoint was written with another {meaning} ({state.get(name)}, now {mine[name]}), so the "
                    "data position cannot be resumed: restore it, or start afresh in a new run_dir"
                )
        if not 0 <= state["offset"] <= len(self._items) or state["epoch"] < 0:
            raise ValueError(f"the data position in the checkpoint is out of range: {state}")
        self._seek(state["epoch"], state["offset"])

    def _seek(self, epoch: int, offset: int) -> None:
        self._epoch = epoch
        self._offset = offset
        if self._shuffle:
            entropy = [self._seed, epoch, *([self._stream] if self._stream else [])]
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
            self._permutation: Sequence[int] | np.ndarray = generator.permutation(len(self._items))
        else:
            self._permutation = range(len(self._items))
