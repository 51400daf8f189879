"""Pushes the policy's weights into the rollout engines, version by version."""

from collections.abc import Mapping

import torch

from megatron_prime.hf.mapping import ModelShape
from megatron_prime.parallel.topology import Topology
from megatron_prime.resharding.layouts import EngineLayout, TrainingLayout
from megatron_prime.resharding.plan import ReshardPlan, plan_reshard
from megatron_prime.resharding.transport import RankTransport
from megatron_prime.rollout.engine import Engine
from megatron_prime.types import WeightBucket


def training_layout(topology: Topology) -> TrainingLayout:
    """The part of a topology that decides who holds which weights."""
    return TrainingLayout(
        tp=topology.tensor_size,
        pp=topology.pipeline_size,
        dp=topology.data_size,
        cp=topology.context_size,
        vpp=topology.virtual_size,
        ep=topology.expert_size,
        etp=topology.expert_tensor_size,
    )


def plan_for(shape: ModelShape, topology: Topology, engines: EngineLayout, dtype: torch.dtype) -> ReshardPlan:
    """The plan from this job's layout to some engines'."""
    return plan_reshard(shape, training_layout(topology), engines, bytes_per_element=dtype.itemsize)


class WeightSync:
    """Brings an engine to the trainer's weights.

    Args:
        engine: what samples; its tensors are HF-named.
        transport: from the policy's parameters to the engine's ranks; None when the engine's own path fetches them.
    """

    def __init__(self, engine: Engine, transport: RankTransport | None) -> None:
        self._engine = engine
        self._transport = transport

    def push(self, version: int) -> None:
        """Send every weight; from here on the engine samples from them, as `version`.

        Collective over all ranks. Raises WeightSyncError when a tensor did not arrive whole; the engine then has no
        valid weights and refuses to sample.
        """
        self._engine.begin_weight_update(version)
        for blocks in self._transport.deliver() if self._transport is not None else ():
            self._engine.load_weights(WeightBucket(tuple(blocks), version))
        self._engine.end_weight_update()


def embedded_weight_sync(
    engine: Engine,
    shape: ModelShape,
    parameters: Mapping[str, torch.Tensor],
    topology: Topology,
    dtype: torch.dtype,
) -> WeightSync:
    """The sync into one whole engine on each training rank."""
    engines = EngineLayout.consecutive(topology.world_size, tp=1)
    plan = plan_for(shape, topology, engines, dtype)
    return WeightSync(engine, RankTransport(plan, parameters, topology, dtype))


def gathered_weight_sync(
    engine: Engine,
    shape: ModelShape,
    parameters: Mapping[str, torch.Tensor],
    topology: Topology,
    dtype: torch.dtype,
) -> WeightSync:
    """The sync into an engine that takes whole tensors on training rank 0 alone, to write them to files."""
    return WeightSync(engine, to_rank_0(shape, parameters, topology, dtype))


def to_rank_0(
    shape: ModelShape, parameters: Mapping[str, torch.Tensor], topology: Topology, dtype: torch.dtype
) -> RankTransport:
    """Whole tensors on training rank 0 alone; the dear way, for files and for full checks."""
    return RankTransport(
        plan_for(shape, topology, EngineLayout(1, 1, ((0,),)), dtype), parameters, topology, dtype
    )
