"""The protocol of a weight sync, as the training ranks and the receivers inside SGLang servers both implement it.

Trainer and receivers meet in a store that trainer rank 0 hosts, see `signing`. The keys of one attempt share a prefix:

    hello/RANK   receiver: the instructions fit the model (or an error), the process groups that it still has, and the
                 label of the weights that it holds
    go           trainer:  the process group to use, the rank in it of each receiver that takes part, and the label of
                 the new weights; who gets only the changes since which weights
    report/RANK  receiver: the sum of the checksums of its parameters, or an error
"""

import datetime
import ipaddress
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F

from .signing import SignedStore

PROTOCOL = 5
"""Version of the protocol. The trainer sends it along, and a receiver refuses any other."""
DIRECT_BYTES = 1 << 20
"""A slice of at least this size that is contiguous in memory is a message of its own, sent without a copy."""
UNKNOWN_LAYOUT = "unknown layout"
"""The error of a receiver that lacks the list of slices and needs it sent again."""
BLOCK_SIZE = 128
"""Rows and columns that share a scale in block FP8, as in DeepSeek's checkpoints and SGLang's kernels."""
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integer type of each size in bytes."""
_CHUNK = 1 << 20
_WIDTH = 1 << 10
"""Divides _CHUNK."""
_ERROR_HANDLING = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
_ABORT_ONLY = "2"
"""Value of the variable with which torch's watchdog of a group aborts the group after an error.

By default it ends the process: a server that dies in a sync would end the training job."""


class Slice(NamedTuple):
    """A slice of an HF tensor: where it belongs in the shard of one tensor-parallel rank, and its size."""

    hf_name: str
    dim: int
    start: int
    """First row (or column) in the shard."""
    length: int
    num_elements: int
    dtype: str
    """The type that is sent, which the parameter must have, such as float32."""


class ProcessGroup(Protocol):
    """The methods used of torch's ProcessGroupGloo and ProcessGroupNCCL."""

    def send(self, tensors: list[torch.Tensor], rank: int, tag: int, /) -> dist.Work: ...  # noqa: D102
    def recv(self, tensors: list[torch.Tensor], rank: int, tag: int, /) -> dist.Work: ...  # noqa: D102
    def allreduce(self, tensors: list[torch.Tensor], /) -> dist.Work: ...  # noqa: D102
    def abort(self) -> None: ...  # noqa: D102
    def _start_coalescing(self) -> None: ...
    def _end_coalescing(self) -> dist.Work: ...


class _Gloo(dist.ProcessGroupGloo):
    """A gloo group that keeps its store alive: torch itself does not, if the store is written in Python."""

    def __init__(self, store: dist.Store, rank: int, size: int, options: Any) -> None:  # noqa: ANN401
        super().__init__(store, rank, size, options)
        self.store = store


def make_group(
    backend: str, store: SignedStore, name: str, rank: int, size: int, timeout_s: float
) -> ProcessGroup:
    """Create a process group that is independent of the default one. Collective over its `size` ranks."""
    timeout = datetime.timedelta(seconds=timeout_s)
    if backend == "gloo":
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._timeout = timeout
        # Members that all meet on the loopback address need not listen on the network. Elsewhere gloo chooses the
        # interface by GLOO_SOCKET_IFNAME or the host's name.
        is_local = ipaddress.ip_address(store.address).is_loopback
        options._devices = [
            dist.ProcessGroupGloo.create_device(hostname=store.address)
            if is_local
            else dist.ProcessGroupGloo.create_default_device()
        ]
        return cast(ProcessGroup, _Gloo(store.for_group(name), rank, size, options))
    # Threads of NCCL's group use its store too, and a store in Python could deadlock with them.
    group = _make_nccl_group(dist.PrefixStore(name, store.raw), rank, size, timeout)
    # A barrier would guess the device from the rank, which is wrong for a server that sees its own GPUs alone.
    warm_up(group, torch.zeros(1, device="cuda"), timeout)
    return group


def _make_nccl_group(store: dist.Store, rank: int, size: int, timeout: datetime.timedelta) -> ProcessGroup:
    options = dist.ProcessGroupNCCL.Options()
    # NCCL's watchdog must not interfere before the deadline of `exchange`, which can be handled.
    options._timeout = 2 * timeout
    before = os.environ.get(_ERROR_HANDLING)
    os.environ[_ERROR_HANDLING] = _ABORT_ONLY
    try:
        return cast(ProcessGroup, dist.ProcessGroupNCCL(store, rank, size, options))
    finally:
        if before is None:
            del os.environ[_ERROR_HANDLING]
        else:
            os.environ[_ERROR_HANDLING] = before


def warm_up(group: ProcessGroup, anything: torch.Tensor, timeout: datetime.timedelta) -> None:
    """Connect all ranks of an NCCL group by an operation on a tensor of each rank's device. Collective.

    NCCL connects a group at its first operation, for which it needs every rank, while a bucket may concern a few.
    """
    group.allreduce([anything]).wait(timeout)


def close_groups(groups: dict[str, ProcessGroup], backend: str) -> None:
    """Forget process groups, also those in the middle of an exchange that another rank has left."""
    for group in groups.values() if backend == "nccl" else ():
        # Otherwise a send to a receiver that is gone would stay on the GPU's stream, which then does nothing else.
        # Connections of gloo close with their group.
        group.abort()
    groups.clear()


def check_nccl(trainer: str | None, engine: str | None) -> None:
    """Raise ValueError if two environments have different versions of NCCL, which refuses to connect those."""
    if trainer and engine and trainer != engine:
        raise ValueError(
            f"NCCL {trainer} of the trainer's environment cannot connect to NCCL {engine} of the engine's: install one "
            "version in both (docs/gpu.md), or set rollout.sglang.weight_transport to 'ipc' or 'disk'"
        )


def nccl_version() -> str | None:
    """Return the version of the NCCL that torch has loaded; None in a build without."""
    if not dist.is_nccl_available():
        return None
    return ".".join(str(part) for part in torch.cuda.nccl.version())  # type: ignore[attr-defined]


def exchange(
    group: ProcessGroup,
    outgoing: Sequence[tuple[int, torch.Tensor]],
    incoming: Sequence[tuple[int, torch.Tensor]],
    backend: str,
    timeout_s: float,
) -> dict[int, str]:
    """Send and receive many tensors at once. Tensors between the same two ranks match in order.

    Args:
        group: the process group of trainer and receivers.
        outgoing: (rank in the group, tensor) of each send.
        incoming: (rank in the group, buffer) of each receive.
        backend: gloo or nccl.
        timeout_s: deadline of the whole exchange.

    Returns:
        The errors of failed sends by rank, since one receiver's death does not concern the others.

    Raises:
        RuntimeError: a receive failed; with NCCL any failure, which leaves its group unusable.
    """
    if not outgoing and not incoming:
        return {}  # NCCL has no object to wait for if a rank has no part in a bucket.
    outgoing = [(rank, _as_bytes(tensor)) for rank, tensor in outgoing]
    incoming = [(rank, _as_bytes(tensor)) for rank, tensor in incoming]
    timeout = datetime.timedelta(seconds=timeout_s)
    if backend == "nccl":
        # NCCL runs the operations of a stream one after another: two ranks that both send first would deadlock.
        # Coalesced, they are one operation, which also succeeds or fails as one.
        group._start_coalescing()
        for rank, tensor in outgoing:
            group.send([tensor], rank, 0)
        for rank, tensor in incoming:
            group.recv([tensor], rank, 0)
        group._end_coalescing().wait(timeout)
        if (outgoing or incoming)[0][1].is_cuda:
            torch.cuda.synchronize()
        return {}
    # With gloo each pair of ranks has a connection of its own, so that sends can fail one by one.
    receives = [group.recv([tensor], rank, 0) for rank, tensor in incoming]
    errors = _send_each(group, outgoing, timeout)
    for work in receives:
        work.wait(timeout)
    return errors


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """View one-byte floats as integers: neither gloo nor NCCL knows all of them."""
    return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor


def _send_each(
    group: ProcessGroup, outgoing: Sequence[tuple[int, torch.Tensor]], timeout: datetime.timedelta
) -> dict[int, str]:
    errors: dict[int, str] = {}
    sends: list[tuple[int, dist.Work]] = []
    for rank, tensor in outgoing:
        try:
            if rank not in errors:
                sends.append((rank, group.send([tensor], rank, 0)))
        except RuntimeError as error:
            errors[rank] = str(error)
    for rank, work in sends:
        try:
            if rank not in errors:
                work.wait(timeout)
        except RuntimeError as error:
            errors[rank] = str(error)
    return errors


def group_messages(
    slices: Sequence[tuple[int, torch.Tensor]],
) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
    """Group the slices of one bucket from one rank to another into messages. Both ends must group alike.

    Args:
        slices: (dim that the tensor is cut along, slice), in the order of the instructions.

    Returns:
        The slices that are messages of their own, which are large and cut along rows and thus contiguous in the
        parameter too; and for each dtype the list of slices that are packed into one message.
    """
    direct: list[torch.Tensor] = []
    packed: dict[torch.dtype, list[torch.Tensor]] = {}
    for dim, tensor in slices:
        if dim == 0 and tensor.numel() * tensor.element_size() >= DIRECT_BYTES:
            direct.append(tensor)
        else:
            packed.setdefault(tensor.dtype, []).append(tensor)
    return direct, list(packed.values())


def checksum(tensor: torch.Tensor) -> torch.Tensor:
    """Return int64 [2]: the sum of the elements' bits as integers, and the sum weighted by position, modulo 2**64.

    This is Fletcher's checksum in 64 bits: one of the two sums changes when an element changes, when elements swap, and
    when a block moves. Sums of checksums can be compared without an order, and they run on the tensor's device.
    """
    words = tensor.detach().contiguous().view(-1).view(WORDS[tensor.element_size()])
    total = torch.zeros(2, dtype=torch.int64, device=words.device)
    places = torch.arange(max(_WIDTH, _CHUNK // _WIDTH), device=words.device)
    # In chunks: as int64 the whole tensor would take up to eight times its memory.
    for index, chunk in enumerate(words.split(_CHUNK)):
        # As a matrix, whose sums of rows and of columns need no product for each element.
        matrix = F.pad(chunk.long(), (0, -chunk.numel() % _WIDTH)).view(-1, _WIDTH)
        rows, columns = matrix.sum(1), matrix.sum(0)
        plain = rows.sum()
        total[0] += plain
        total[1] += (rows * places[: len(rows)]).sum() * _WIDTH + (columns * places[:_WIDTH]).sum()
        total[1] += plain * (index * _CHUNK + 1)
    return total


class ChecksumError(RuntimeError):
    """Tensors are not what the sender has."""


def verify_checksums(tensors: Sequence[torch.Tensor], expected: torch.Tensor) -> torch.Tensor:
    """Compare the checksums of tensors with the expected ones, int64 [num_tensors, 2]; return their sum, int64 [2].

    Raises ChecksumError unless all are equal.
    """
    found = torch.stack([checksum(tensor) for tensor in tensors])
    if not torch.equal(found, expected):
        num_wrong = int((found != expected).any(dim=1).sum())
        raise ChecksumError(f"{num_wrong} of {len(tensors)} slices arrived with a wrong checksum")
    return found.sum(0).cpu()
