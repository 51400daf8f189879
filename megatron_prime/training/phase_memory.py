"""Time of each phase of a step, memory of each role in it, and the device's peak."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from megatron_prime.observability.metrics import GIB, Metrics
from megatron_prime.parallel.collectives import any_rank
from megatron_prime.parallel.platform import Platform
from megatron_prime.parallel.topology import Topology
from megatron_prime.rollout.engine import Engine
from megatron_prime.rollout.verification import VerifierAwayError
from megatron_prime.training.residency import Residency


class PhaseMemory:
    """Measures time and memory of the phases of a step.

    Args:
        roles: those of policy, prm and reference that the run has.
        platform: the device, whose peak is recorded on a GPU.
    """

    def __init__(self, roles: Mapping[str, Residency], platform: Platform) -> None:
        self._roles = roles
        self._platform = platform

    @contextmanager
    def phase(self, metrics: Metrics, name: str) -> Iterator[None]:
        """Add `time/<name>_s`, `memory/<name>/<role>_gib` (the role's maximum) and, on a GPU, `device_peak_gib`.

        A role counts weights, gradients and optimizer states; activations show in the device's peak alone.
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
        """Return `memory/host_copies_gib`: host memory that holds offloaded parts."""
        return {
            "memory/host_copies_gib": sum(r.host_bytes() for r in self._roles.values()) / GIB,
        }


@contextmanager
def release_after(engine: Engine) -> Iterator[None]:
    """Have the engine release its memory after the block, also if a reward server is away: a checkpoint follows then.

    After another error nothing is released, because it may concern this rank alone, and the release is collective.
    """
    try:
        yield
    except VerifierAwayError:
        engine.release_memory()
        raise
    engine.release_memory()


def free_memory_for_servers(topology: Topology) -> None:
    """Return torch's cached memory to the GPU before servers on the same GPU start, or take their memory back.

    Servers are processes of their own, for which memory in torch's cache is not free. Collective over all ranks: none
    continues before every rank has returned its cache.
    """
    topology.platform.release_cached_memory()
    any_rank(False, topology)
