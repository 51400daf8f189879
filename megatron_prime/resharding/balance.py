"""Sharing equal units of work among ranks that have unequal loads already. Pure, stdlib only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableSequence, Sequence
from itertools import accumulate
from operator import itemgetter


def share_out(
    loads: MutableSequence[int], ranks: Iterable[int], num_units: int, unit_size: int
) -> tuple[tuple[int, int], ...]:
    """Give `num_units` units of `unit_size` to `ranks` so that the largest load stays as small as can be.

    Adds to `loads`, which is indexed by rank. Returns (rank, number of units) by rank, only of those that got
    some. Equal loads go to the lower rank.
    """
    candidates = sorted((loads[rank], rank) for rank in ranks)
    filled = list(accumulate((load for load, _ in candidates), initial=0))
    total = num_units * unit_size
    # The most candidates that still stand below the common level to which the units lift them.
    num_used = max(
        k for k, (load, _) in enumerate(candidates, start=1) if k == 1 or filled[k] + total > k * load
    )
    level = (filled[num_used] + total) // num_used
    counts = {rank: max(0, (level - load) // unit_size) for load, rank in candidates[:num_used]}
    spare = num_units - sum(counts.values())
    lowest_first = sorted((load + counts[rank] * unit_size, rank) for load, rank in candidates[:num_used])
    for _, rank in lowest_first[:spare]:
        counts[rank] += 1
    for rank, count in counts.items():
        loads[rank] += count * unit_size
    return tuple((rank, counts[rank]) for rank in sorted(counts) if counts[rank])


def windows(shares: Sequence[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    """Cut the units of `shares`, where each rank has its number of consecutive ones, into windows of `size`.

    Yields each window's shares. `size` divides the number of units.
    """
    window: list[tuple[int, int]] = []
    room = size
    for rank, count in shares:
        left = count
        while left:
            taken = min(left, room)
            window.append((rank, taken))
            left -= taken
            room -= taken
            if not room:
                yield window
                window, room = [], size
    assert not window, f"the last of the windows of {size} units is not full"


def spread(shares: Sequence[tuple[int, int]]) -> list[int]:
    """The rank of each unit; the ranks take turns in proportion, so that all work at the same time."""
    if len(shares) == 1:
        return [shares[0][0]] * shares[0][1]
    turns = [((turn + 0.5) / count, rank) for rank, count in shares for turn in range(count)]
    turns.sort(key=itemgetter(0))
    return [rank for _, rank in turns]
