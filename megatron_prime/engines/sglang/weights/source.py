"""The sending side of shard-to-shard weight syncs, built from the policy's parameters and the servers' layout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from megatron_prime.engines.sglang.weights.bucketed_plan import BucketedPlan
from megatron_prime.engines.sglang.weights.group_sender import GroupSender
from megatron_prime.engines.sglang.weights.ipc_sender import IpcSender
from megatron_prime.engines.sglang.weights.sender import Sender
from megatron_prime.hf.mapping import ModelShape
from megatron_prime.parallel.topology import Topology
from megatron_prime.resharding.layouts import EngineLayout
from megatron_prime.resharding.transport import RankTransport, plan_for
from megatron_prime.types import WeightBlock

ON_RANK_0 = EngineLayout(1, 1, ((0,),))
"""The layout of a receiver of whole tensors on training rank 0."""


@dataclass(frozen=True, slots=True)
class WeightSource:
    """The policy's weights on the training ranks, ready to be sent to servers."""

    sender: Sender
    plan: BucketedPlan
    gather: Callable[[], dict[str, torch.Tensor]]
    """Returns whole tensors on the CPU by HF name, in the dtype that is sent; empty except on rank 0. Collective, and
    expensive in time and in rank 0's memory."""

    @classmethod
    def build(
        cls,
        shape: ModelShape,
        parameters: Mapping[str, torch.Tensor],
        topology: Topology,
        dtype: torch.dtype,
        engines: EngineLayout,
        *,
        max_bucket_bytes: int = 256 << 20,
        is_quantized: bool = False,
        sends_changes: bool = True,
    ) -> WeightSource:
        """Plan the transfers to servers of some layout and make this rank's sender.

        Args:
            shape: of the model.
            parameters: the policy's Megatron parameters on this rank, by name.
            topology: of the training job.
            dtype: the type to send.
            engines: the servers in order, either all on ranks outside of the training job, which are reached by gloo or
                NCCL, or all on training ranks of the servers' nodes, which hand slices over in shared memory.
            max_bucket_bytes: the most bytes that an engine rank receives at a time.
            is_quantized: send linear layers in block FP8.
            sends_changes: send servers that are not on training ranks, and hold the weights of the last sync, the
                changes alone. This keeps a copy of the weights in host memory.

        Raises:
            ValueError: the shape can't be divided that way.
        """
        hosted = [rank < topology.world_size for ranks in engines.ranks for rank in ranks]
        assert all(hosted) or not any(hosted), "one transport serves all engines"
        plan = BucketedPlan(
            plan_for(shape, topology, engines, dtype),
            max_bucket_bytes,
            str(dtype).removeprefix("torch."),
            from_host=hosted[0],
            is_quantized=is_quantized,
        )
        sender: Sender
        if hosted[0]:
            sender = IpcSender(plan, parameters, topology, dtype)
        else:
            sender = GroupSender(plan, parameters, topology, dtype, sends_changes=sends_changes)

        def gather() -> dict[str, torch.Tensor]:
            to_rank_0 = plan_for(shape, topology, ON_RANK_0, dtype)
            whole: dict[str, torch.Tensor] = {}
            for blocks in RankTransport(to_rank_0, parameters, topology, dtype).deliver():
                # To the CPU bucket by bucket: rank 0's GPU could not hold a second copy of the model.
                whole |= {name: tensor.cpu() for name, tensor in join_blocks(blocks).items()}
            return whole

        return cls(sender, plan, gather)


def join_blocks(blocks: Iterable[WeightBlock]) -> dict[str, torch.Tensor]:
    """Return whole tensors by HF name from all of their blocks, in any order."""
    by_name: dict[str, list[WeightBlock]] = {}
    for block in blocks:
        by_name.setdefault(block.hf_name, []).append(block)
    return {
        name: torch.cat([block.tensor for block in sorted(parts, key=lambda p: p.start)], dim=parts[0].dim)
        for name, parts in by_name.items()
    }
