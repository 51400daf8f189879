"""The interface of the training ranks' side of a weight sync, and the records that it exchanges with the driver."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch

from megatron_prime.engines.sglang.loader.signing import SignedStore
from megatron_prime.engines.sglang.loader.wire import checksum
from megatron_prime.engines.sglang.weights.bucketed_plan import BucketedPlan, Target
from megatron_prime.engines.sglang.weights.quantize import quantize_slice
from megatron_prime.resharding.plan import Transfer

SliceKey = tuple[str, int, int, int]
"""Parameter, dim, start and length of a slice on the rank that sends it."""


@dataclass(frozen=True)
class Rendezvous:
    """The meeting point of training ranks and receivers for one attempt."""

    attempt: str
    """Prefix of the attempt's keys in the store."""
    store: tuple[str, int]
    """Address and port of the store."""
    key: str = field(repr=False)
    """Key that signs the attempt's values in the store."""
    group: str
    """Name of the process group; a group of this name that exists already is used again."""
    size: int
    """Ranks of the group: those of the training job come first, then the receivers."""
    members: tuple[tuple[Target, int], ...]
    """Each receiver that takes part, and its rank in the group."""
    timeout_s: float
    label: str = ""
    """Name of the weights that are sent."""
    base: str = ""
    """Name of the weights that the receivers in `patched` have."""
    patched: frozenset[Target] = frozenset()
    """The receivers that get only what has changed since `base`."""

    def connect(self) -> SignedStore:
        """Return the attempt's part of the store. Raises RuntimeError when the store is gone."""
        address, port = self.store
        return SignedStore.connect(address, port, self.timeout_s, self.key, f"{self.attempt}/")


@dataclass
class SendReport:
    """The outcome of one training rank's part of an attempt."""

    faults: dict[int, str] = field(default_factory=dict)
    """Error by engine."""
    digests: dict[Target, tuple[int, int]] = field(default_factory=dict)
    """Sum of the checksums of all slices sent to each target, modulo 2**64."""
    num_bytes: int = 0
    num_compared: int = 0
    """Elements that were compared with those sent last; each once, however many receivers there are."""
    num_changed: int = 0
    """Elements of these that differ; all of a slice that is sent whole."""

    def add(self, target: Target, checksums: Sequence[int]) -> None:
        """Add the checksums of a slice, or their sum over slices, to a target's digest."""
        before = self.digests.get(target, (0, 0))
        first, second = ((a + b) % (1 << 64) for a, b in zip(before, checksums, strict=True))
        self.digests[target] = (first, second)


class Sender(Protocol):
    """Brings a training rank's weights to the receivers in the servers. Collective over the training ranks."""

    @property
    def backend(self) -> str:
        """Name of the transport, as the receivers know it: gloo, nccl or ipc."""
        ...

    @property
    def sends_changes(self) -> bool:
        """True if receivers that have the weights of the last sync can be sent the changes alone."""
        ...

    @property
    def groups(self) -> list[str]:
        """Names of the process groups that can be used again."""
        ...

    def drop_groups(self) -> None:
        """Close the connections and buffers; receivers that wait for data then fail instead of timing out."""
        ...

    def send(self, rendezvous: Rendezvous) -> SendReport:
        """Send everything to the receivers. Never raises for a receiver's fault, which is in the report."""
        ...


class EncodedSlice(NamedTuple):
    """A slice in the form that is sent: itself, or its FP8 values and their scales."""

    tensors: list[torch.Tensor]
    checksums: list[torch.Tensor]
    """int64 [2] of each tensor."""

    @classmethod
    def encode(cls, transfer: Transfer, tensor: torch.Tensor, plan: BucketedPlan) -> "EncodedSlice":
        """Encode a transfer's slice, which must have the served dtype already."""
        hf_size = plan.quantized_sizes.get(transfer.hf_name)
        tensors = [tensor]
        if hf_size is not None:
            blocks = quantize_slice(
                tensor,
                dim=transfer.dim,
                local_start=0,
                length=transfer.length,
                hf_start=transfer.hf_start,
                hf_size=hf_size,
            )
            tensors = [blocks.weight, blocks.scale_inv]
        return cls(tensors, [checksum(tensor) for tensor in tensors])


def slice_key(transfer: Transfer) -> SliceKey:
    """Return the identity of a transfer's slice on its source rank: equal for all targets that get the slice."""
    return (transfer.source_param, transfer.dim, transfer.source_local_start, transfer.length)
