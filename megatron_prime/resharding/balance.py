"""Distribution of equal units of work over ranks with different loads. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableSequence, Sequence
from itertools import accumulate
from operator import itemgetter


def share_out(
    loads: MutableSequence[int], ranks: Iterable[int], num_units: int, unit_size: int
) -> tuple[tuple[int, int], ...]:
    """Distribute `num_units` units of `unit_size` over `ranks` so that the largest load is as small as possible.

    Args:
        loads: load of each rank, indexed by rank; updated in place.
        ranks: ranks that may receive units. Of equal loads the lower rank is preferred.
        num_units: number of units.
        unit_size: load of one unit.

    Returns:
        (rank, number of units) of each rank that received some, ordered by rank.
    """
    candidates = sorted((loads[rank], rank) for rank in ranks)
    filled = list(accumulate((load for load, _ in candidates), initial=0))
    total = num_units * unit_size
    # As in pouring water into vessels of different fill heights: the units raise the num_used least loaded ranks to a
    # common level, where num_used is the largest number of ranks whose loads are all below that level.
    num_used = max(
        k for k, (load, _) in enumerate(candidates, start=1) if k == 1 or filled[k] + total > k * load
    )
    level = (filled[num_used] + total) // num_used
    counts = {rank: max(0, (level - load) // unit_size) for load, rank in candidates[:num_used]}
    # Rounding down leaves some units, which go to the ranks that are then least loaded.
    spare = num_units - sum(counts.values())
    lowest_first = sorted((load + counts[rank] * unit_size, rank) for load, rank in candidates[:num_used])
    for _, rank in lowest_first[:spare]:
        counts[rank] += 1
    for rank, count in counts.items():
        loads[rank] += count * unit_size
    return tuple((rank, counts[rank]) for rank in sorted(counts) if counts[rank])


def windows(shares: Sequence[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    """Split the units of `shares`, in which each rank has consecutive units, into windows of `size` units.

    Yields the shares of each window. `size` must divide the number of units.
    """
    window: list[tuple[int, int]] = []
    num_free = size
    for rank, count in shares:
        left = count
        while left:
            taken = min(left, num_free)
            window.append((rank, taken))
            left -= taken
            num_free -= taken
            if not num_free:
                yield window
                window, num_free = [], size
    assert not window, f"the last window of {size} units is not full"


def spread(shares: Sequence[tuple[int, int]]) -> list[int]:
    """Return the rank of each unit, interleaved in proportion to the shares so that all ranks work at the same time."""
    if len(shares) == 1:
        return [shares[0][0]] * shares[0][1]
    # The k-th of a rank's n units is placed at (k + 0.5) / n of the whole, so each rank's units are evenly spaced.
    turns = [((turn + 0.5) / count, rank) for rank, count in shares for turn in range(count)]
    turns.sort(key=itemgetter(0))
    return [rank for _, rank in turns]
