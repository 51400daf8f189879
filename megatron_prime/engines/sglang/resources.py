"""The GPUs and cores of a node, as all its training ranks together know them.

A rank may see less than its node has: Slurm may give each task GPUs and cores of its own. The servers, which are
children of one rank, use all of them.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_prime.rollout.ranks import Ranks


@dataclass(frozen=True, slots=True)
class RankResources:
    """The GPUs and cores that one training rank may use."""

    local_rank: int
    gpus: tuple[str, ...]
    """GPUs that CUDA_VISIBLE_DEVICES names; none if it is not set."""
    cores: frozenset[int]

    @classmethod
    def of_this_process(cls, environment: Mapping[str, str] = os.environ) -> "RankResources":
        """Return the resources of this process."""
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
        return cls(int(environment.get("LOCAL_RANK", "0")), visible_gpus(environment), frozenset(cores))


@dataclass(frozen=True, slots=True)
class NodeResources:
    """The GPUs and cores that the training ranks of one node may use together."""

    gpus: tuple[str, ...] = ()
    """Names for CUDA_VISIBLE_DEVICES, those of the ranks' own GPUs first, by LOCAL_RANK; none if they are not known."""
    cores: tuple[int, ...] = ()
    are_ranks_apart: bool = False
    """True if several ranks name their own GPU alike: each is confined to its GPU, and can reach no other one."""

    @classmethod
    def of(cls, ranks: Sequence[RankResources]) -> "NodeResources":
        """Combine the resources of a node's ranks."""
        cores = tuple(sorted({core for rank in ranks for core in rank.cores}))
        if not all(rank.gpus for rank in ranks):
            return cls(cores=cores)
        # As select_platform chooses it.
        own = [rank.gpus[rank.local_rank % len(rank.gpus)] for rank in ranks]
        others = [gpu for rank in ranks for gpu in rank.gpus]
        return cls(tuple(dict.fromkeys([*own, *others])), cores, len(set(own)) < len(own))

    def require(self, num_gpus: int) -> None:
        """Raise ValueError if servers need more GPUs than they could reach."""
        if self.are_ranks_apart and num_gpus > len(self.gpus):
            raise ValueError(
                f"the SGLang servers of a node need {num_gpus} GPUs, but each rank is confined to its own and cannot "
                "pass on the others: start the ranks so that each sees all GPUs of its node, as examples/prime_70b.sh "
                "does (srun with --gpus-per-node, and without --gpus-per-task and --gpu-bind)"
            )


def visible_gpus(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names in CUDA_VISIBLE_DEVICES; none if it is not set."""
    names = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return tuple(name.strip() for name in names if name.strip())


def gather_resources(ranks: Ranks) -> list[NodeResources]:
    """Return the resources of the node of each rank, by rank. Collective over the training ranks."""
    found = ranks.gather_all([RankResources.of_this_process()])
    starts = sorted({0, *(rank for rank, own in enumerate(found) if own.local_rank == 0)})
    ends = [*starts[1:], len(found)]
    return [
        node
        for start, end in zip(starts, ends, strict=True)
        for node in [NodeResources.of(found[start:end])] * (end - start)
    ]
