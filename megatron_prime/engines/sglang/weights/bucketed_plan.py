"""A `ReshardPlan` to servers, cut into buckets, as the senders and the receivers need it. Pure: no communication.

A training rank follows `outgoing` and the receiver in an engine's TP rank follows `incoming`; both list the same slices
between two ranks in the same order.
"""

from __future__ import annotations

import json
import zlib
from array import array
from base64 import b64encode
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from megatron_prime.engines.sglang.loader.wire import BLOCK_SIZE
from megatron_prime.engines.sglang.weights.alignment import check_aligned, num_blocks_of, scale_name
from megatron_prime.resharding.plan import ReshardPlan, Transfer

Target = tuple[int, int]
"""(engine, tensor-parallel rank in it)."""


def bucket_of_names(plan: ReshardPlan, max_bytes: int) -> dict[str, int]:
    """Assign each HF tensor to a bucket, equally on every rank that has an equal plan.

    No engine rank receives more than `max_bytes` in a bucket, except for a single shard that is larger by itself.
    Raises ValueError unless `max_bytes` is positive.
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
class BucketedPlan:
    """The transfers of a plan by bucket, computed once and used for every sync.

    Args:
        reshard: the plan; its targets are engines' TP ranks outside of the training job.
        max_bucket_bytes: the most bytes that an engine rank receives at a time, larger single shards excepted.
        dtype: of all slices, as torch names it, without the module.
        from_host: the targets are training ranks, and a receiver gets all slices from its own (see `ipc_sender`).
        is_quantized: send the weights of linear layers in block FP8, each as its values and their scales.
    """

    reshard: ReshardPlan
    max_bucket_bytes: int
    dtype: str
    from_host: bool = False
    is_quantized: bool = False
    _buckets: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.is_quantized:
            check_aligned(self.reshard)
        # The dataclass is frozen; the buckets follow from its fields.
        object.__setattr__(self, "_buckets", bucket_of_names(self.reshard, self.max_bucket_bytes))

    @cached_property
    def quantized_sizes(self) -> dict[str, int]:
        """Map the HF name of each tensor that is sent quantized to its size along the dim that it is cut in."""
        if not self.is_quantized:
            return {}
        return {
            member.hf_name(group.tensor.name): group.dims[group.dim]
            for group in self.reshard.groups
            if group.tensor.is_linear
            for member in group.members
        }

    @property
    def num_buckets(self) -> int:
        """Number of buckets of a sync."""
        return max(self._buckets.values()) + 1

    def outgoing(self, rank: int) -> list[dict[Target, list[Transfer]]]:
        """Return, for each bucket, the transfers from a training rank to each target, in order."""
        buckets: list[dict[Target, list[Transfer]]] = [defaultdict(list) for _ in range(self.num_buckets)]
        for transfer in self.reshard.sent_by(rank):
            target = (transfer.engine, transfer.engine_tp_rank)
            buckets[self._buckets[transfer.hf_name]][target].append(transfer)
        return [dict(bucket) for bucket in buckets]

    def sizes_of(self, transfer: Transfer) -> list[int]:
        """Return the bytes of each tensor that a transfer is sent as: one, or FP8 values and their scales."""
        if transfer.hf_name not in self.quantized_sizes:
            return [transfer.num_bytes]
        num_elements = transfer.num_bytes // self.reshard.bytes_per_element
        num_scales = num_blocks_of(transfer.length) * num_blocks_of(num_elements // transfer.length)
        return [num_elements, 4 * num_scales]

    def hosted_by(self, rank: int) -> list[Target]:
        """Return the targets that share a device with a training rank."""
        return [
            (engine, tp_rank)
            for engine, ranks in enumerate(self.reshard.engines.ranks)
            for tp_rank, host in enumerate(ranks)
            if host == rank
        ]

    def received(self, engine: int, tp_rank: int) -> list[list[Transfer]]:
        """Return, for each bucket, the transfers to a target from all ranks, in order."""
        buckets: list[list[Transfer]] = [[] for _ in range(self.num_buckets)]
        for transfer in self.reshard.received_by(engine, tp_rank):
            buckets[self._buckets[transfer.hf_name]].append(transfer)
        return buckets

    def incoming(self, engine: int, tp_rank: int) -> dict[str, Any]:
        """Return the layout of a target's slices as its receiver parses it, ready for JSON.

        `slices` is compressed JSON, one text for all engines; `sources` has the source rank of each slice. This takes
        long for the first target alone.
        """
        text, sizes = self._slices[tp_rank]
        if self.from_host:
            host = self.reshard.engines.ranks[engine][tp_rank]
            return {"slices": text, "sources": [host] * sum(sizes)}
        by_transfer = self._sources[tp_rank][engine]
        return {
            "slices": text,
            "sources": [source for source, size in zip(by_transfer, sizes, strict=True) for _ in range(size)],
        }

    @cached_property
    def _sources(self) -> list[list[array[int]]]:
        return [self.reshard.sources(tp_rank) for tp_rank in range(self.reshard.engines.tp)]

    @cached_property
    def _slices(self) -> list[tuple[str, bytes]]:
        """The slices of each TP rank as text, equal for all engines, and how many slices each transfer is sent as.

        Names and dtypes are listed once, and each slice is a row of numbers that refers to them: a large model has
        hundreds of thousands of slices.
        """
        found = []
        for tp_rank in range(self.reshard.engines.tp):
            names: dict[str, int] = {}
            sizes = bytearray()
            buckets = []
            for transfers in self.received(0, tp_rank):
                rows = [self._rows(transfer, names) for transfer in transfers]
                sizes += bytes(len(each) for each in rows)
                buckets.append([row for each in rows for row in each])
            body = {
                "names": list(names),
                "dtypes": [self.dtype, "float8_e4m3fn", "float32"],
                "buckets": [bucket for bucket in buckets if bucket],
            }
            text = b64encode(zlib.compress(json.dumps(body).encode())).decode()
            found.append((text, bytes(sizes)))
        return found

    def _rows(self, transfer: Transfer, names: dict[str, int]) -> list[list[int]]:
        """Return the slices that a transfer is sent as, and number their names."""
        name = names.setdefault(transfer.hf_name, len(names))
        num_elements = transfer.num_bytes // self.reshard.bytes_per_element
        if transfer.hf_name not in self.quantized_sizes:
            return [[name, transfer.dim, transfer.target_start, transfer.length, num_elements, 0]]
        # The scales of a slice are a slice of the tensor of scales, 128 times smaller in both dims.
        scales = names.setdefault(scale_name(transfer.hf_name), len(names))
        num_blocks = num_blocks_of(transfer.length)
        num_scales = num_blocks * num_blocks_of(num_elements // transfer.length)
        first = transfer.target_start // BLOCK_SIZE
        return [
            [name, transfer.dim, transfer.target_start, transfer.length, num_elements, 1],
            [scales, transfer.dim, first, num_blocks, num_scales, 2],
        ]
