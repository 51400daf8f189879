"""What each end of a weight sync is told, from a `ReshardPlan`: who sends which slices in which bucket. Pure.

A training rank walks `outgoing`, an engine's TP rank `incoming`; both hold the same slices of a pair in the same order.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from megatron_prime.engines.sglang.weights.alignment import (
    BLOCK_SIZE,
    check_aligned,
    num_blocks_of,
    scale_name,
)
from megatron_prime.resharding.plan import ReshardPlan, Transfer

Target = tuple[int, int]
"""(engine, TP rank in it)."""


def bucket_of_names(plan: ReshardPlan, max_bytes: int) -> dict[str, int]:
    """The bucket of each HF tensor: no engine rank gets more than max_bytes in one, larger single shards excepted.

    Equal on every rank that has an equal plan. Raises ValueError unless max_bytes is positive.
    """
    if max_bytes < 1:
        raise ValueError(f"max_bytes = {max_bytes} must be positive")
    shard_bytes: dict[str, list[int]] = {}
    for group in plan.groups:
        sizes = []
        for tp_rank in range(plan.engines.tp):
            shard = group.engine_shard(plan.shape, plan.engines, tp_rank)
            rows = 0 if shard is None else shard.length
            sizes.append(rows * group.slice_elements * plan.bytes_per_element)
        for member in group.members:
            shard_bytes[member.hf_name(group.tensor.name)] = sizes
    buckets: dict[str, int] = {}
    loads, index = [0] * plan.engines.tp, 0
    for name in plan.hf_names:
        loads = [load + size for load, size in zip(loads, shard_bytes[name], strict=True)]
        if max(loads) > max_bytes and buckets:
            index, loads = index + 1, list(shard_bytes[name])
        buckets[name] = index
    return buckets


@dataclass(frozen=True)
class Manifests:
    """The parts of one plan's syncs, cut into buckets once and used for every sync.

    Args:
        plan: targets are engines' TP ranks outside of the training job.
        max_bucket_bytes: most bytes that an engine rank gets at a time, larger single shards excepted.
        dtype: of all slices, as torch names it without the module.
        is_quantized: weights of linear layers travel in block FP8, each as its values and their scales.
        from_host: targets are training ranks instead, and get all their slices from there (see `transport_ipc`).
    """

    plan: ReshardPlan
    max_bucket_bytes: int
    dtype: str
    from_host: bool = False
    is_quantized: bool = False
    _buckets: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.is_quantized:
            check_aligned(self.plan)
        object.__setattr__(self, "_buckets", bucket_of_names(self.plan, self.max_bucket_bytes))

    @cached_property
    def quantized_sizes(self) -> dict[str, int]:
        """HF name of each tensor that travels quantized -> its size along the dim that it is cut in."""
        if not self.is_quantized:
            return {}
        return {
            member.hf_name(group.tensor.name): group.dims[group.dim]
            for group in self.plan.groups
            if group.tensor.is_linear
            for member in group.members
        }

    @property
    def num_buckets(self) -> int:
        """Buckets of a sync."""
        return max(self._buckets.values()) + 1

    def outgoing(self, rank: int) -> list[dict[Target, list[Transfer]]]:
        """Of each bucket, what a training rank sends to each target, in order."""
        buckets: list[dict[Target, list[Transfer]]] = [defaultdict(list) for _ in range(self.num_buckets)]
        for transfer in self.plan.sent_by(rank):
            target = (transfer.engine, transfer.engine_tp_rank)
            buckets[self._buckets[transfer.hf_name]][target].append(transfer)
        return [dict(bucket) for bucket in buckets]

    def sizes_of(self, transfer: Transfer) -> list[int]:
        """Bytes of each tensor that a transfer travels as."""
        if transfer.hf_name not in self.quantized_sizes:
            return [transfer.num_bytes]
        num_elements = transfer.num_bytes // self.plan.bytes_per_element
        num_scales = num_blocks_of(transfer.length) * num_blocks_of(num_elements // transfer.length)
        return [num_elements, 4 * num_scales]

    def hosted_by(self, rank: int) -> list[Target]:
        """The targets on a training rank."""
        return [
            (engine, tp_rank)
            for engine, ranks in enumerate(self.plan.engines.ranks)
            for tp_rank, host in enumerate(ranks)
            if host == rank
        ]

    def received(self, engine: int, tp_rank: int) -> list[list[Transfer]]:
        """Of each bucket, what a target gets from any rank, in order."""
        buckets: list[list[Transfer]] = [[] for _ in range(self.num_buckets)]
        for transfer in self.plan.received_by(engine, tp_rank):
            buckets[self._buckets[transfer.hf_name]].append(transfer)
        return buckets

    def incoming(self, engine: int, tp_rank: int) -> dict[str, Any]:
        """What a target gets, as `rollout.sglang_receiver`'s `body` has it: ready for JSON."""
        names: dict[str, int] = {}
        buckets: list[dict[int, list[list[int]]]] = []
        for transfers in self.received(engine, tp_rank):
            buckets.append(defaultdict(list))
            for transfer in transfers:
                name = names.setdefault(transfer.hf_name, len(names))
                num_elements = transfer.num_bytes // self.plan.bytes_per_element
                source = transfer.target_rank if self.from_host else transfer.source_rank
                rows = buckets[-1][source]
                if transfer.hf_name not in self.quantized_sizes:
                    rows.append([name, transfer.dim, transfer.target_start, transfer.length, num_elements, 0])
                    continue
                rows.append([name, transfer.dim, transfer.target_start, transfer.length, num_elements, 1])
                scales = names.setdefault(scale_name(transfer.hf_name), len(names))
                num_blocks = num_blocks_of(transfer.length)
                num_scales = num_blocks * num_blocks_of(num_elements // transfer.length)
                first = transfer.target_start // BLOCK_SIZE
                rows.append([scales, transfer.dim, first, num_blocks, num_scales, 2])
        return {
            "names": list(names),
            "dtypes": [self.dtype, "float8_e4m3fn", "float32"],
            "buckets": [list(bucket.items()) for bucket in buckets if bucket],
        }
