"""How much memory each role holds in each phase of a step, and the device's peak."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from megatron_prime.observability.metrics import GIB, Metrics
from megatron_prime.parallel.collectives import any_rank
from megatron_prime.parallel.platform import Platform
from megatron_prime.parallel.topology import Topology
from megatron_prime.rollout.engine import NO_WEIGHTS, Engine
from megatron_prime.training.residency import Residency


class PhaseMemory:
    """Times the phases of a step and notes their memory.

    Args:
        roles: policy, prm, reference: those that the run has.
        platform: whose peak is noted, on a GPU.
    """

    def __init__(self, roles: Mapping[str, Residency], platform: Platform) -> None:
        self._roles = roles
        self._platform = platform

    @contextmanager
    def phase(self, metrics: Metrics, name: str) -> Iterator[None]:
        """Add `time/<name>_s`, `memory/<name>/<role>_gib` (the most that the role held) and, on a GPU, `device_peak`.

        Models alone are counted: weights, gradients, optimizer states; activations show in the device's peak.
        """
        for residency in self._roles.values():
            residency.most_bytes = residency.bytes_here()
        self._platform.reset_peak_memory()
        with metrics.timed(name):
            yield
        for role, residency in self._roles.items():
            metrics[f"memory/{name}/{role}_gib"] = residency.most_bytes / GIB
        if self._platform.is_cuda:
            metrics[f"memory/{name}/device_peak_gib"] = self._platform.peak_memory_bytes() / GIB

    def host_copies(self) -> dict[str, float]:
        """`memory/host_copies_gib`: host memory behind what was offloaded."""
        return {
            "memory/host_copies_gib": sum(r.host_bytes() for r in self._roles.values()) / GIB,
        }


def make_room(engine: Engine, topology: Topology) -> None:
    """Before an engine that gave its memory up takes it back: give the GPU what torch keeps free.

    Servers are processes of their own, to which memory in torch's cache is not free. Collective over all ranks: none
    goes on before every one has done so. Elsewhere nothing: memory that nobody else needs is best kept.
    """
    if engine.policy_version == NO_WEIGHTS:
        topology.platform.release_cached_memory()
        any_rank(False, topology)
