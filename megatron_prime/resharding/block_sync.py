"""The weight sync into tensors of the training processes themselves, such as those of the embedded engine."""

from collections.abc import Iterable, Mapping
from typing import Protocol

import torch

from megatron_prime.hf.mapping import ModelShape
from megatron_prime.parallel.topology import Topology
from megatron_prime.resharding.layouts import EngineLayout
from megatron_prime.resharding.transport import RankTransport, plan_for
from megatron_prime.types import WeightBlock


class BlockSink(Protocol):
    """The receiving end of a sync in this process, such as a `rollout.weight_intake.WeightIntake`."""

    def receive(self, policy_version: int, buckets: Iterable[Iterable[WeightBlock]]) -> None:
        """Take in all blocks of a sync. Raises WeightSyncError unless they are complete."""
        ...


class BlockSync:
    """Delivers blocks of HF tensors by a `RankTransport` to a sink in every training process.

    Implements `rollout.weight_sync.WeightSync`.
    """

    def __init__(self, sink: BlockSink, transport: RankTransport) -> None:
        self._sink = sink
        self._transport = transport

    def push(self, policy_version: int) -> dict[str, float]:
        """See `WeightSync.push`."""
        self._sink.receive(policy_version, self._transport.deliver())
        return {}

    def resync(self, server: int) -> None:
        """Do nothing: the engine is part of the training processes and has no server that could restart alone."""

    def close(self) -> None:
        """Do nothing: the tensors belong to the engine."""


def embedded_weight_sync(
    sink: BlockSink,
    shape: ModelShape,
    parameters: Mapping[str, torch.Tensor],
    topology: Topology,
    dtype: torch.dtype,
) -> BlockSync:
    """Return the sync into one whole engine on each training rank.

    Args:
        sink: the tensors of this rank's engine.
        shape: the model.
        parameters: the policy's Megatron parameters on this rank, by name.
        topology: ranks of the training job.
        dtype: dtype in which weights are sent.
    """
    engines = EngineLayout.consecutive(topology.world_size, tp=1)
    plan = plan_for(shape, topology, engines, dtype)
    return BlockSync(sink, RankTransport(plan, parameters, topology, dtype))
