"""Which rank and which microbatch takes which rows, balanced by cost.

Two steps, both deterministic: rows are spread over as many bins as the smallest common number of microbatches needs,
then bins are grouped into ranks. Pipeline schedules and gradient synchronisation want every rank to run the same
number of microbatches, so the bin count is always a multiple of `num_ranks`.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")

TOKENS_PER_ATTENTION_TOKEN = 8192
"""Sequence length at which attention's quadratic cost equals the linear cost of a token: about 6 * hidden_size for a
dense model, so right for width ~1400 and on the safe (token-bound) side for wider ones."""


@dataclass(frozen=True, slots=True)
class Packing:
    """Rows of a global batch, as rank -> microbatch -> rows.

    Every rank has the same number of microbatches. A microbatch may be empty only where there were fewer rows than
    microbatches to fill; the rank still has to run it (see `is_empty`).
    """

    rows: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def num_ranks(self) -> int:
        """Ranks packed for."""
        return len(self.rows)

    @property
    def num_microbatches(self) -> int:
        """Microbatches of each rank."""
        return len(self.rows[0])

    @property
    def num_rows(self) -> int:
        """Rows of the global batch."""
        return sum(len(rows) for microbatches in self.rows for rows in microbatches)

    def is_empty(self, rank: int, microbatch: int) -> bool:
        """Whether this microbatch holds no row: run it on dummy tokens that count for nothing."""
        return not self.rows[rank][microbatch]

    def restore(self, packed: Iterable[Iterable[Iterable[Item]]]) -> list[Item]:
        """Per-row results in the order of the global batch.

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


def row_cost(length: int) -> float:
    """Relative compute of one sequence: linear layers plus attention's quadratic term, in tokens."""
    return length * (1.0 + length / TOKENS_PER_ATTENTION_TOKEN)


def pack(lengths: Sequence[int], max_tokens: int, num_ranks: int) -> Packing:
    """Assign rows to ranks and microbatches.

    Args:
        lengths: tokens of each row (prompt and response).
        max_tokens: most tokens of one microbatch.
        num_ranks: data-parallel ranks.

    Returns:
        Every row exactly once; no microbatch above `max_tokens`; equally many microbatches on each rank, as few as
        first-fit finds; balanced by `row_cost`. The same arguments give the same packing on every rank.

    Raises:
        ValueError: a row is longer than `max_tokens` or not positive, or there are no ranks.
    """
    if num_ranks < 1:
        raise ValueError(f"packing needs at least one rank, got {num_ranks}")
    for row, length in enumerate(lengths):
        if length < 1:
            raise ValueError(f"row {row} has {length} tokens; a row has at least one")
        if length > max_tokens:
            raise ValueError(
                f"row {row} has {length} tokens, more than max_tokens = {max_tokens} of one microbatch: raise "
                "trainer.max_tokens_per_microbatch or lower rollout.max_prompt_tokens + max_response_tokens"
            )
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    first_fit = _first_fit(order, lengths, max_tokens)
    num_microbatches = max(1, -(-len(first_fit) // num_ranks))
    num_bins = num_microbatches * num_ranks
    bins = _spread(order, lengths, max_tokens, num_bins)
    if bins is None:
        bins = first_fit + [[] for _ in range(num_bins - len(first_fit))]
        _fill_empty(bins)
    return Packing(_group_into_ranks(bins, lengths, num_ranks, num_microbatches))


def _first_fit(order: Sequence[int], lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """First-fit decreasing: few bins, unbalanced."""
    bins: list[list[int]] = []
    space: list[int] = []
    for row in order:
        for index, free in enumerate(space):
            if lengths[row] <= free:
                bins[index].append(row)
                space[index] -= lengths[row]
                break
        else:
            bins.append([row])
            space.append(max_tokens - lengths[row])
    return bins


def _spread(
    order: Sequence[int], lengths: Sequence[int], max_tokens: int, num_bins: int
) -> list[list[int]] | None:
    """Longest row first, always into the cheapest bin with room; None when that runs out of room."""
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    tokens = [0] * num_bins
    heap = [(0.0, index) for index in range(num_bins)]
    for row in order:
        full: list[tuple[float, int]] = []
        while heap and tokens[heap[0][1]] + lengths[row] > max_tokens:
            full.append(heapq.heappop(heap))
        if not heap:
            return None
        cost, index = heapq.heappop(heap)
        bins[index].append(row)
        tokens[index] += lengths[row]
        heapq.heappush(heap, (cost + row_cost(lengths[row]), index))
        for entry in full:
            heapq.heappush(heap, entry)
    return bins


def _fill_empty(bins: list[list[int]]) -> None:
    """Give every empty bin a row of the fullest one while that has two or more."""
    for index in range(len(bins)):
        if bins[index]:
            continue
        donor = max(range(len(bins)), key=lambda other: (len(bins[other]), -other))
        if len(bins[donor]) > 1:
            bins[index].append(bins[donor].pop())


def _group_into_ranks(
    bins: list[list[int]], lengths: Sequence[int], num_ranks: int, num_microbatches: int
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Costliest bin first, into the cheapest rank that still lacks a microbatch."""
    costs = [sum(row_cost(lengths[row]) for row in rows) for rows in bins]
    ranks: list[list[tuple[int, ...]]] = [[] for _ in range(num_ranks)]
    rank_costs = [0.0] * num_ranks
    for index in sorted(range(len(bins)), key=lambda index: (-costs[index], index)):
        open_ranks = (rank for rank in range(num_ranks) if len(ranks[rank]) < num_microbatches)
        rank = min(open_ranks, key=lambda rank: (rank_costs[rank], rank))
        ranks[rank].append(tuple(sorted(bins[index])))
        rank_costs[rank] += costs[index]
    return tuple(tuple(microbatches) for microbatches in ranks)
