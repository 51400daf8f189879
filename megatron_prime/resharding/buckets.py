"""Splitting a `ReshardPlan` into buckets, for coalesced messages with bounded buffers. Standard library only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from megatron_prime.resharding.plan import ReshardPlan, Transfer

_Load = tuple[str, int, int]
"""Key of a load: ("send", training rank, 0) or ("receive", engine, engine_tp_rank)."""


@dataclass(frozen=True)
class Bucket:
    """HF tensors that are sent together; each engine rank receives its complete shards of `hf_names`."""

    index: int
    hf_names: tuple[str, ...]
    transfers: tuple[Transfer, ...] = field(repr=False)
    num_bytes: int


def buckets(plan: ReshardPlan, max_bytes: int) -> tuple[Bucket, ...]:
    """Split a plan into buckets in which no rank sends and no engine rank receives more than `max_bytes`.

    Local copies count as sent and received, because they pass through the same buffers. A single tensor that a rank
    sends to many engines may exceed the limit; it then has a bucket of its own. The result depends only on the
    arguments, so every rank computes the same buckets.

    Raises:
        ValueError: an engine rank's shard of a single tensor is larger than `max_bytes`.
    """
    result: list[Bucket] = []
    names: list[str] = []
    transfers: list[Transfer] = []
    loads: Counter[_Load] = Counter()
    for hf_name, group in _by_tensor(plan.transfers):
        added: Counter[_Load] = Counter()
        for transfer in group:
            added["send", transfer.source_rank, 0] += transfer.num_bytes
            added["receive", transfer.engine, transfer.engine_tp_rank] += transfer.num_bytes
        # The limit is strict for receivers, which allocate buffers of this size. A sender may exceed it with a single
        # tensor, as described above.
        largest = max(num_bytes for load, num_bytes in added.items() if load[0] == "receive")
        if largest > max_bytes:
            raise ValueError(
                f"a bucket of {max_bytes} bytes is too small for {hf_name}: allow {largest} or more"
            )
        if names and any(loads[key] + num_bytes > max_bytes for key, num_bytes in added.items()):
            result.append(_bucket(len(result), names, transfers))
            names, transfers, loads = [], [], Counter()
        # A tensor is never divided between buckets, so that a receiver can use it as soon as its bucket has arrived.
        names.append(hf_name)
        transfers += group
        loads.update(added)
    if names:
        result.append(_bucket(len(result), names, transfers))
    return tuple(result)


def _by_tensor(transfers: tuple[Transfer, ...]) -> Iterator[tuple[str, list[Transfer]]]:
    group: list[Transfer] = []
    for transfer in transfers:
        if group and group[0].hf_name != transfer.hf_name:
            yield group[0].hf_name, group
            group = []
        group.append(transfer)
    if group:
        yield group[0].hf_name, group


def _bucket(index: int, names: list[str], transfers: list[Transfer]) -> Bucket:
    return Bucket(index, tuple(names), tuple(transfers), sum(t.num_bytes for t in transfers))
