"""The order in which a data set is visited: one seeded permutation per epoch, resumable at any row."""

import re
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np

FORMAT = 2
"""Raise it when unchanged data get another fingerprint or another order than before.

Positions without a number are of format 1 or 2.
"""

_METADATA = re.compile(r"(?<=^[0-9a-f]{16})\+[0-9a-f]{16}")
"""The part of a fingerprint that only data sets with metadata have; see `PromptDataset.fingerprint`."""

Item = TypeVar("Item")


class ResumableOrder(Generic[Item]):
    """An endless order over `items` that visits each item once per epoch.

    Epoch e is a permutation by numpy's counter-based Philox generator keyed on (seed, e). No generator state has to be
    saved: the position is two numbers, and the order is the same on every machine.
    """

    def __init__(
        self, items: Sequence[Item], fingerprint: str, seed: int, shuffle: bool, stream: int = 0
    ) -> None:
        """Start at epoch 0, row 0.

        Args:
            items: The items to visit, at least one.
            fingerprint: Identifies the contents of `items`; checked on resuming.
            seed: Seed of the permutations, 0 or more.
            shuffle: False visits items in their order every epoch.
            stream: Number of this data set in a mixture. Data sets of equal size with the same seed and stream would
                be permuted identically.

        Raises:
            ValueError: If there are no items.
        """
        if not items:
            raise ValueError("the data set is empty: there is nothing to visit")
        self._items = items
        self._fingerprint = fingerprint
        self._seed = seed
        self._shuffle = shuffle
        self._stream = stream
        self._seek(0, 0)

    @property
    def epoch(self) -> int:
        """Number of complete passes so far."""
        return self._epoch

    def next(self, num_items: int) -> list[Item]:
        """Return the next items and advance the position, into the next epoch where one ends."""
        chosen = []
        for _ in range(num_items):
            if self._offset == len(self._items):
                self._seek(self._epoch + 1, 0)
            chosen.append(self._items[int(self._permutation[self._offset])])
            self._offset += 1
        return chosen

    def state_dict(self) -> dict[str, Any]:
        """Return the position as plain JSON values; its size does not grow with the data."""
        return {
            "format": FORMAT,
            "epoch": self._epoch,
            "offset": self._offset,
            "seed": self._seed,
            "shuffle": self._shuffle,
            "fingerprint": self._fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken.

        Raises:
            ValueError: If data, seed or shuffling differ from those the state was taken with; continuing would visit
                some rows twice and others never.
        """
        mine = self.state_dict()
        written = state.get("format", 1)
        is_same = _is_same_data(state.get("fingerprint"), self._fingerprint)
        if written != FORMAT and not is_same and state.get("fingerprint") is not None:
            age = "a newer" if isinstance(written, int) and written > FORMAT else "an older"
            raise ValueError(
                f"this checkpoint was made by {age} version of megatron_prime: it identifies data in another way "
                f"(format {written}, now {FORMAT}), so that changed data would not be noticed. Resume with that "
                "version, or start afresh in a new run_dir"
            )
        for name, meaning in (
            ("fingerprint", "data set"),
            ("seed", "seed"),
            ("shuffle", "data.shuffle setting"),
        ):
            if state.get(name) != mine[name] and not (name == "fingerprint" and is_same):
                raise ValueError(
                    f"this checkpoint was written with another {meaning} ({state.get(name)}, now {mine[name]}), so the "
                    "data position cannot be resumed: restore it, or start afresh in a new run_dir"
                )
        # An offset at the very end is valid: the next epoch begins only when another item is asked for.
        if not 0 <= state["offset"] <= len(self._items) or state["epoch"] < 0:
            raise ValueError(f"the data position in the checkpoint is out of range: {state}")
        self._seek(state["epoch"], state["offset"])

    def _seek(self, epoch: int, offset: int) -> None:
        self._epoch = epoch
        self._offset = offset
        if self._shuffle:
            # Stream 0 adds no entropy: the order of an unmixed data set is keyed on (seed, epoch) alone.
            entropy = [self._seed, epoch, *([self._stream] if self._stream else [])]
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
            self._permutation: Sequence[int] | np.ndarray = generator.permutation(len(self._items))
        else:
            self._permutation = range(len(self._items))


def _is_same_data(one: object, other: str) -> bool:
    """Return whether two fingerprints are equal; metadata count if both runs read them.

    A run may be resumed with a verifier that reads metadata after one that did not.
    """
    if not isinstance(one, str) or one == other:
        return one == other
    have_metadata = [_METADATA.search(each) is not None for each in (one, other)]
    return not all(have_metadata) and _METADATA.sub("", one) == _METADATA.sub("", other)
