"""Which responses share an optimizer step."""

from collections.abc import Iterator

import numpy as np


def minibatches(
    num_rows: int, num_minibatches: int, num_epochs: int, seed: int, step_index: int
) -> Iterator[list[int]]:
    """Yield the rows of each minibatch, ascending, epoch after epoch.

    Every epoch deals all rows anew, at random but keyed on (seed, step_index, epoch), so that a resumed run deals the
    same. A single minibatch holds all rows in order: it is then packed exactly as a scoring pass packs the batch.
    Raises ValueError when the minibatches would be unequal.
    """
    if num_rows % num_minibatches:
        raise ValueError(f"{num_rows} responses cannot be cut into {num_minibatches} equal minibatches")
    size = num_rows // num_minibatches
    for epoch in range(num_epochs):
        order = np.random.default_rng([seed, step_index, epoch]).permutation(num_rows).tolist()
        for start in range(0, num_rows, size):
            yield sorted(order[start : start + size])
