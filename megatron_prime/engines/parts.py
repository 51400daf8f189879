"""The parts that every kind of engine provides to a run."""

from collections.abc import Callable
from dataclasses import dataclass

from megatron_prime.config.run import PrimeConfig
from megatron_prime.models.builder import BuiltModel
from megatron_prime.parallel.topology import Topology
from megatron_prime.rollout.engine import CheckpointEngine
from megatron_prime.rollout.ranks import Ranks
from megatron_prime.rollout.weight_sync import WeightSync


@dataclass(frozen=True, slots=True)
class EngineParts:
    """An engine without weights, and the means to give it some."""

    engine: CheckpointEngine
    make_weight_sync: Callable[[BuiltModel], WeightSync]
    """Returns the sync from a policy to the engine."""
    startup_note: str = ""
    """Message to the user about what the first weight sync waits for; empty for an engine that starts at once."""


EngineBuilder = Callable[[PrimeConfig, Topology, Ranks], EngineParts]
"""Builds an engine from the configuration, the layout of the training job, and this process's place in it."""
