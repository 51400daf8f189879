"""Assign the rows of a batch to ranks and microbatches, balanced by cost.

Two steps, both deterministic: rows are spread over as many bins as the smallest common number of microbatches needs,
then bins are grouped into ranks. Pipeline schedules and gradient synchronisation want every rank to run the same
number of microbatches, so the bin count is always a multiple of `num_ranks`. Any row may go anywhere: groups need not
stay together, because everything that compares the rows of a group happens on the whole batch (docs/adr/0004).
"""

import bisect
import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

Item = TypeVar("Item")

EVEN_ENOUGH = 1.005
"""Ratio of the highest cost of a rank to the mean below which a packing is not improved further."""
MOST_EXCHANGES = 200
"""Maximum number of row exchanges to improve a packing."""
EXCHANGE_PARTNERS = 4
"""Number of cheapest ranks that are considered for each exchange."""

MOST_PACKINGS = 32
"""Packings that are remembered, because the models of a step pack the same rows: the batch, and each minibatch."""


@dataclass(frozen=True, slots=True)
class RowCosts:
    """Computational cost of one row, in units of the linear layers' work on one token."""

    attention_tokens: float = 8192.0
    """Length of a sequence whose attention costs as much as its linear layers."""
    output_share: float = 0.0
    """Cost of the output layer for one scored (response) token."""

    def __call__(self, num_tokens: int, num_response_tokens: int = 0) -> float:
        """Return the cost of a row of `num_tokens`, of which `num_response_tokens` are scored."""
        return (
            num_tokens * (1.0 + num_tokens / self.attention_tokens) + self.output_share * num_response_tokens
        )


@dataclass(frozen=True, slots=True)
class Padding:
    """Padding that the layout requires; see models/packed_sequences.py."""

    sequences_to: int = 1
    """Every sequence is padded to a multiple of this."""
    microbatch_to: int = 1
    """Every microbatch is padded to a multiple of this, itself a multiple of sequences_to."""

    def sequence(self, num_tokens: int) -> int:
        """Return the tokens of a sequence with its padding."""
        return _round_up(num_tokens, self.sequences_to)

    def microbatch(self, num_tokens: int) -> int:
        """Return the tokens of a microbatch with the padding at its end."""
        return _round_up(num_tokens, self.microbatch_to)


@dataclass(frozen=True, slots=True)
class Packing:
    """Rows of a global batch, as rank -> microbatch -> rows.

    Every rank has the same number of microbatches. A microbatch may be empty only where there were fewer rows than
    microbatches to fill; the rank still has to run it (see `is_empty`).
    """

    rows: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def num_ranks(self) -> int:
        """Number of ranks."""
        return len(self.rows)

    @property
    def num_microbatches(self) -> int:
        """Number of microbatches of each rank."""
        return len(self.rows[0])

    @property
    def num_rows(self) -> int:
        """Number of rows of the global batch."""
        return sum(len(rows) for microbatches in self.rows for rows in microbatches)

    def is_empty(self, rank: int, microbatch: int) -> bool:
        """Return whether this microbatch holds no row; it then runs on dummy tokens that do not count."""
        return not self.rows[rank][microbatch]

    def restore(self, packed: Iterable[Iterable[Iterable[Item]]]) -> list[Item]:
        """Return per-row results in the order of the global batch.

        Args:
            packed: results laid out as `rows` is: rank -> microbatch -> one item a row.

        Raises:
            ValueError: a rank, microbatch or row is missing or too many.
        """
        restored: dict[int, Item] = {}
        for microbatches, items_of_rank in zip(self.rows, packed, strict=True):
            for rows, items in zip(microbatches, items_of_rank, strict=True):
                restored.update(zip(rows, items, strict=True))
        return [restored[row] for row in range(self.num_rows)]


def pack(
    lengths: Sequence[int],
    max_tokens: int,
    num_ranks: int,
    costs: Sequence[float] | None = None,
    padding: Padding = Padding(),
) -> Packing:
    """Assign rows to ranks and microbatches.

    Args:
        lengths: tokens of each row (prompt and response).
        max_tokens: most tokens of one microbatch, padding included; itself padded to what a microbatch is padded to,
            so that a row of max_tokens always fits.
        num_ranks: data-parallel ranks.
        costs: compute of each row, of any unit (`RowCosts`); default its length.
        padding: what the layout adds to sequences and microbatches.

    Returns:
        Every row exactly once; no microbatch above `max_tokens`; equally many microbatches on each rank, as few as
        best-fit finds; balanced by cost; costliest microbatch first, so that the ranks' m-th ones are alike where they
        wait for each other. The same arguments give the same packing on every rank.

    Raises:
        ValueError: a row is longer than `max_tokens` or not positive, or there are no ranks.
    """
    if num_ranks < 1:
        raise ValueError(f"packing needs at least one rank, got {num_ranks}")
    shortest, longest = min(lengths, default=1), max(lengths, default=1)
    if shortest < 1:
        raise ValueError(f"row {lengths.index(shortest)} has {shortest} tokens; a row has at least one")
    if longest > max_tokens:
        raise ValueError(
            f"row {lengths.index(longest)} has {longest} tokens, more than max_tokens = {max_tokens} of one "
            "microbatch: raise trainer.max_tokens_per_microbatch or lower rollout.max_prompt_tokens + "
            "max_response_tokens"
        )
    costs = [float(length) for length in lengths] if costs is None else costs
    return _pack(tuple(lengths), max_tokens, num_ranks, tuple(costs), padding)


@lru_cache(maxsize=MOST_PACKINGS)
def _pack(
    lengths: tuple[int, ...], max_tokens: int, num_ranks: int, costs: tuple[float, ...], padding: Padding
) -> Packing:
    padded = [padding.sequence(length) for length in lengths]
    capacity = padding.microbatch(max_tokens)
    fewest = _best_fit(_descending(padded), padded, capacity)
    num_microbatches = max(1, -(-len(fewest) // num_ranks))
    num_bins = num_microbatches * num_ranks
    bins = _spread(padded, costs, capacity, num_bins)
    if bins is None:
        bins = fewest + [[] for _ in range(num_bins - len(fewest))]
        _fill_empty(bins)
        _even_out(bins, range(num_bins), padded, costs, capacity)
    owners = _owners(bins, costs, num_ranks, num_microbatches)
    _even_out(bins, owners, padded, costs, capacity)
    return Packing(_by_rank(bins, owners, costs, num_ranks))


def _descending(keys: Sequence[Any]) -> list[int]:
    """Return the indices of the keys, that of the greatest key first; equal keys keep their order."""
    return sorted(range(len(keys)), key=keys.__getitem__, reverse=True)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _best_fit(order: Sequence[int], lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return bins by best-fit decreasing, which makes few but unbalanced bins."""
    bins: list[list[int]] = []
    free: list[
        tuple[int, int]
    ] = []  # (free tokens, bin), sorted, so that bisection finds the fullest bin that fits a row
    for row in order:
        place = bisect.bisect_left(free, (lengths[row], 0))
        if place == len(free):
            bins.append([row])
            room, index = capacity, len(bins) - 1
        else:
            room, index = free.pop(place)
            bins[index].append(row)
        bisect.insort(free, (room - lengths[row], index))
    return bins


def _spread(
    lengths: Sequence[int], costs: Sequence[float], capacity: int, num_bins: int
) -> list[list[int]] | None:
    """Put the costliest row first, always into the cheapest bin that fits it; return None if a row fits none."""
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    tokens = [0] * num_bins
    by_cost = [(0.0, index) for index in range(num_bins)]
    # Bins that were too full for a row wait here, the emptiest first, until a row is short enough for them: looking at
    # each of them again for every row would take time that grows with the square of the number of rows.
    too_full: list[tuple[int, float, int]] = []
    for row in _descending(list(zip(costs, lengths, strict=True))):
        most_tokens = capacity - lengths[row]
        while too_full and too_full[0][0] <= most_tokens:
            heapq.heappush(by_cost, heapq.heappop(too_full)[1:])
        while by_cost and tokens[by_cost[0][1]] > most_tokens:
            cost, index = heapq.heappop(by_cost)
            heapq.heappush(too_full, (tokens[index], cost, index))
        if not by_cost:
            return None
        cost, index = heapq.heappop(by_cost)
        bins[index].append(row)
        tokens[index] += lengths[row]
        heapq.heappush(by_cost, (cost + costs[row], index))
    return bins


def _fill_empty(bins: list[list[int]]) -> None:
    """Move a row of the fullest bin to each empty one while the fullest has two or more."""
    fullest = [(-len(rows), index) for index, rows in enumerate(bins)]
    heapq.heapify(fullest)
    for rows in bins:
        if not rows and -fullest[0][0] > 1:
            size, donor = fullest[0]
            rows.append(bins[donor].pop())
            heapq.heapreplace(fullest, (size + 1, donor))


def _even_out(
    bins: list[list[int]],
    owners: Sequence[int],
    lengths: Sequence[int],
    costs: Sequence[float],
    capacity: int,
) -> None:
    """Exchange rows between the costliest owner of bins and a cheap one while this lowers the highest cost.

    In place. No bin is emptied or filled above `capacity`. A few passes at most: most batches need none.
    """
    tokens = [sum(lengths[row] for row in rows) for rows in bins]
    totals = [0.0] * (max(owners) + 1)
    for owner, cost in zip(owners, _sums(bins, costs), strict=True):
        totals[owner] += cost
    for _ in range(MOST_EXCHANGES):
        by_cost = sorted(range(len(totals)), key=lambda owner: (totals[owner], owner))
        costliest = by_cost[-1]
        if totals[costliest] <= EVEN_ENOUGH * sum(totals) / len(totals):
            return
        sources = [index for index, owner in enumerate(owners) if owner == costliest]
        for cheap in by_cost[: min(EXCHANGE_PARTNERS, len(by_cost) - 1)]:
            targets = [index for index, owner in enumerate(owners) if owner == cheap]
            gap = totals[costliest] - totals[cheap]
            exchange = _best_exchange(bins, sources, targets, lengths, costs, tokens, capacity, gap)
            if exchange is not None:
                totals[costliest] -= exchange.more_cost
                totals[cheap] += exchange.more_cost
                exchange.apply(bins, tokens, lengths)
                break
        else:
            return


@dataclass(frozen=True, slots=True)
class _Exchange:
    """A row that moves from one bin to another, and optionally one that moves back."""

    source: int
    target: int
    given: int
    taken: int | None
    more_cost: float
    """Cost that moves to the owner of the target bin."""

    def apply(self, bins: list[list[int]], tokens: list[int], lengths: Sequence[int]) -> None:
        for source, target, row in (
            (self.source, self.target, self.given),
            (self.target, self.source, self.taken),
        ):
            if row is not None:
                bins[source].remove(row)
                bins[target].append(row)
                tokens[source] -= lengths[row]
                tokens[target] += lengths[row]


def _best_exchange(
    bins: list[list[int]],
    sources: list[int],
    targets: list[int],
    lengths: Sequence[int],
    costs: Sequence[float],
    tokens: list[int],
    capacity: int,
    gap: float,
) -> _Exchange | None:
    """Return the exchange that leaves the smallest gap between the two owners' costs; None if none reduces it."""
    best, best_gap = None, gap * (1 - 1e-9)
    places: list[tuple[int, int | None]] = [(target, row) for target in targets for row in bins[target]]
    places += [(target, None) for target in targets]
    for source in sources:
        for given in bins[source]:
            for target, taken in places:
                more_cost = costs[given] - (0.0 if taken is None else costs[taken])
                if abs(gap - 2 * more_cost) >= best_gap or (taken is None and len(bins[source]) == 1):
                    continue
                more_tokens = lengths[given] - (0 if taken is None else lengths[taken])
                if tokens[target] + more_tokens <= capacity and tokens[source] - more_tokens <= capacity:
                    best = _Exchange(source, target, given, taken, more_cost)
                    best_gap = abs(gap - 2 * more_cost)
    return best


def _owners(
    bins: list[list[int]], costs: Sequence[float], num_ranks: int, num_microbatches: int
) -> list[int]:
    """Return the rank of each bin: the costliest bin first, to the cheapest rank that still lacks a microbatch."""
    bin_costs = _sums(bins, costs)
    owners = [0] * len(bins)
    # (cost, rank, microbatches) of the ranks that lack one, as a heap.
    ranks = [(0.0, rank, 0) for rank in range(num_ranks)]
    for index in _descending(bin_costs):
        cost, rank, num_owned = heapq.heappop(ranks)
        owners[index] = rank
        if num_owned + 1 < num_microbatches:
            heapq.heappush(ranks, (cost + bin_costs[index], rank, num_owned + 1))
    return owners


def _by_rank(
    bins: list[list[int]], owners: Sequence[int], costs: Sequence[float], num_ranks: int
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Return each rank's microbatches, costliest first."""
    bin_costs = _sums(bins, costs)
    ranks: list[list[tuple[int, ...]]] = [[] for _ in range(num_ranks)]
    for index in _descending(bin_costs):
        ranks[owners[index]].append(tuple(sorted(bins[index])))
    return tuple(tuple(microbatches) for microbatches in ranks)


def _sums(bins: list[list[int]], costs: Sequence[float]) -> list[float]:
    return [sum(map(costs.__getitem__, rows)) for rows in bins]
