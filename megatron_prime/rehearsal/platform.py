"""The platform of a rehearsal: a device without memory, whose copies are counted and take no time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron_prime.parallel.platform import CopyMark, Platform, unrounded_sizes
from megatron_prime.rehearsal.ledger import Ledger
from megatron_prime.rehearsal.values import META


class Mark:
    """The end of copies, which has always come."""

    def synchronize(self) -> None:
        """Return at once."""


@dataclass(frozen=True)
class RehearsedPlatform(Platform):
    """A GPU, or a CPU, of which only the sizes of its memory exist."""

    ledger: Ledger = None  # type: ignore[assignment]
    is_gpu: bool = True

    @property
    def is_cuda(self) -> bool:
        """True if a GPU is rehearsed, so that the code takes the paths that it takes on one."""
        return self.is_gpu

    @property
    def gpu_memory_bytes(self) -> int:
        """See `Platform`; unknown here."""
        return 0

    def peak_memory_bytes(self) -> int:
        """Return the peak of the current phase."""
        return max((phase.peak for phase in self.ledger.phases.values()), default=0)

    def reset_peak_memory(self) -> None:
        """Do nothing: the ledger has a peak for each phase."""

    def synchronize(self) -> None:
        """Do nothing."""

    def host_buffers(self, num_bytes: int) -> list[torch.Tensor]:
        """Return host memory without content, counted as such."""
        sizes = unrounded_sizes(num_bytes) if self.is_gpu else [num_bytes]
        with self.ledger.on_host():
            buffers = [torch.empty(size, dtype=torch.uint8, device=META) for size in sizes]
            for buffer in buffers:
                self.ledger.see(buffer.untyped_storage())
        return buffers

    def copy_to_host(
        self,
        pairs: Sequence[tuple[torch.Tensor, torch.Tensor]],
        after: CopyMark | None = None,
    ) -> CopyMark:
        """Check the sizes of the pairs."""
        for host, device in pairs:
            assert host.shape == device.shape
        return Mark()

    def copy_to_device(
        self,
        pairs: Sequence[tuple[torch.Tensor, torch.Tensor]],
        after: CopyMark | None = None,
    ) -> CopyMark:
        """Check the sizes of the pairs."""
        for device, host in pairs:
            assert host.shape == device.shape
        return Mark()

    def release_cached_memory(self) -> None:
        """Do nothing: there is no cache."""
