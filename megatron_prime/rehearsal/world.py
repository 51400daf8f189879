"""The switch that turns this process into one rank of a job whose devices and other ranks do not exist."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any

import torch

from megatron_prime.config.run import PrimeConfig
from megatron_prime.logprobs import output_layer
from megatron_prime.observability import heartbeat
from megatron_prime.parallel import cpu_shim
from megatron_prime.parallel.platform import DTYPES
from megatron_prime.parallel.topology import Topology, configured_topology
from megatron_prime.rehearsal import gpu_kernels
from megatron_prime.rehearsal.collectives import CollectiveRecord
from megatron_prime.rehearsal.groups import RehearsedGroup, join_alone
from megatron_prime.rehearsal.ledger import Ledger
from megatron_prime.rehearsal.operations import Operations
from megatron_prime.rehearsal.platform import RehearsedPlatform
from megatron_prime.rehearsal.values import META, MOST_NUMBERS, forget, numbers_from, set_twin, twin_of

PASSING = ("/megatron_prime/rehearsal/", "/megatron_prime/parallel/cpu_shim.py")
"""Code of this project that every operation passes through."""
LIBRARY = "/site-packages/megatron/"


@dataclass(frozen=True)
class World:
    """One rank of the job, and what is recorded of it."""

    topology: Topology
    collectives: CollectiveRecord
    operations: Operations
    ledger: Ledger


def enter(config: PrimeConfig, rank: int, world_size: int) -> World:
    """Make this process the rank of a job, for the rest of its life.

    Args:
        config: the run's configuration; with `platform.device = "cpu"` the code takes its paths for CPUs.
        rank: of this process.
        world_size: of the job.

    Raises:
        ValueError: the layout does not divide the ranks.
    """
    is_gpu = config.platform.device != "cpu"
    # Compiling for one step would take longer than the step, and nothing is computed anyway.
    torch._dynamo.config.disable = True
    cpu_shim.install(META)
    _read_on_host()
    if is_gpu:
        gpu_kernels.install(config.trainer.logprob_kernel)
    else:
        gpu_kernels.install_for_cpu()
    output_layer.TILE_ELEMENTS["meta"] = output_layer.TILE_ELEMENTS["cuda" if is_gpu else "cpu"]
    ledger = Ledger("meta", current_phase, current_place)
    follow_resizes(ledger, META)
    operations = Operations(ledger, current_phase, current_place)
    # The mode stays active for the rest of the process, so it is entered without a matching exit.
    operations.__enter__()
    collectives = join_alone(rank, world_size)
    RehearsedGroup.fill = staticmethod(fill)
    RehearsedGroup.is_known = staticmethod(lambda tensor: not tensor.is_meta or twin_of(tensor) is not None)
    platform = RehearsedPlatform(
        META,
        "nccl" if is_gpu else "gloo",
        DTYPES[config.platform.dtype],
        timedelta(seconds=config.platform.timeout_s),
        ledger=ledger,
        is_gpu=is_gpu,
    )
    topology = configured_topology(platform, config.parallel, config.seed)
    return World(topology, collectives, operations, ledger)


def current_phase() -> str:
    """Return the phase of the step, by the trainer's names."""
    return heartbeat.current().phase


def current_place() -> str:
    """Return the innermost line of this project, and that of Megatron's that it called, if it was in one."""
    frame: FrameType | None = sys._getframe(1)
    library = ""
    while frame is not None:
        path = frame.f_code.co_filename
        if heartbeat.is_own_code(path) and not any(part in path for part in PASSING):
            own = _line(frame, heartbeat.OWN_CODE)
            return f"{library} < {own}" if library else own
        if not library and LIBRARY in path:
            library = _line(frame, "/site-packages/")
        frame = frame.f_back
    return library or "?"


def _line(frame: FrameType, root: str) -> str:
    path = frame.f_code.co_filename.rpartition(root)[2]
    return f"{path}:{frame.f_lineno} {frame.f_code.co_name}"


def _read_on_host() -> None:
    """Let the modes see what torch reads or copies beneath them: lists in torch.tensor and as indices, and numpy()."""
    make: Callable[..., torch.Tensor] = torch.tensor
    get, put = torch.Tensor.__getitem__, torch.Tensor.__setitem__

    def moved(tensor: torch.Tensor, index: Any) -> Any:  # noqa: ANN401
        return make(index).to(META) if type(index) is list and index and tensor.is_meta else index

    to_numpy = torch.Tensor.numpy

    def numpy(tensor: torch.Tensor, *args: Any, **named: Any) -> Any:  # noqa: ANN401
        return to_numpy(tensor.cpu() if tensor.is_meta else tensor, *args, **named)

    torch.Tensor.numpy = numpy  # type: ignore[method-assign]
    torch.Tensor.__getitem__ = lambda tensor, index: get(tensor, moved(tensor, index))  # type: ignore[method-assign]
    torch.Tensor.__setitem__ = lambda tensor, index, value: put(tensor, moved(tensor, index), value)  # type: ignore[method-assign]

    def tensor(data: Any, *args: Any, **named: Any) -> torch.Tensor:  # noqa: ANN401
        if isinstance(data, (list, tuple)) and data and isinstance(data[0], (list, tuple, torch.Tensor)):
            data = numbers_from(data)
        return make(data, *args, **named)

    torch.tensor = tensor


def follow_resizes(ledger: Ledger, device: torch.device) -> None:
    """Let the ledger know when a storage of a device is resized, which is no operation that a dispatch mode sees."""
    resize = torch.UntypedStorage.resize_

    def resize_and_follow(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
        resized = resize(storage, size)
        if storage.device == device:
            ledger.see(storage)
        return resized

    torch.UntypedStorage.resize_ = resize_and_follow  # type: ignore[method-assign]


def fill(outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> None:
    """Give the outputs of a collective the input's values, where those are known."""
    for output, source in zip(outputs, list(inputs) * len(outputs), strict=False):
        known = twin_of(source) if source.is_meta else source
        if known is None or not source.numel() or not output.numel():
            continue
        if output.numel() > MOST_NUMBERS:
            # A large constant takes one number, which a reduction of all gradients would write out.
            forget(output)
            continue
        # One output for all ranks holds what every one of them has.
        parts = -(-output.numel() // source.numel())
        values = known.detach().reshape(-1).repeat(parts)[: output.numel()].reshape(output.shape)
        if output.is_meta:
            set_twin(output, values)
        else:
            output.copy_(values)
