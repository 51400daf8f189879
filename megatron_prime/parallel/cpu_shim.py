"""All patches that Megatron-core 0.16.1 needs to run on a machine without a GPU.

Megatron-core hard-codes the CUDA device in its schedules, optimizers and random-number tracker. On the CPU
platform those calls are redirected here; no model, schedule or optimizer arithmetic is replaced. The CUDA platform
never imports this module. The reasons are recorded in docs/adr/0002.
"""

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._device import _device_constructors

CPU = torch.device("cpu")
CUDA_TYPE_NAMES = {
    torch.float32: "torch.cuda.FloatTensor",
    torch.float16: "torch.cuda.HalfTensor",
    torch.bfloat16: "torch.cuda.BFloat16Tensor",
}


FACTORIES = (
    "arange",
    "as_tensor",
    "empty",
    "empty_like",
    "empty_strided",
    "eye",
    "full",
    "full_like",
    "linspace",
    "ones",
    "ones_like",
    "rand",
    "rand_like",
    "randint",
    "randint_like",
    "randn",
    "randn_like",
    "randperm",
    "tensor",
    "zeros",
    "zeros_like",
)
METHODS = ("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros")
"""Functions of torch and methods of Tensor whose keyword argument `device` may name a CUDA device."""


def _names_cuda(device: object) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.startswith("cuda")


def _redirected(kwargs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the arguments with a CUDA device replaced by another, and without pinned memory."""
    if _names_cuda(kwargs.get("device")):
        kwargs = {**kwargs, "device": device}
    if kwargs.get("pin_memory"):
        kwargs = {**kwargs, "pin_memory": False}
    return kwargs


def _redirected_factory(factory: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    @functools.wraps(factory)
    def make(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if "device" in kwargs or "pin_memory" in kwargs:
            kwargs = _redirected(kwargs, device)
        return factory(*args, **kwargs)

    return make


def cpu_replacements(device: torch.device = CPU) -> list[tuple[Any, str, Callable[..., Any]]]:
    """Return (owner, attribute, replacement) of each function of torch that must not ask for a CUDA device.

    Functions are replaced one by one, since a TorchFunctionMode would pass every torch call of the process, even
    `tensor.shape`, through Python. Type names are those of CUDA tensors, because Megatron distinguishes fp32 from
    16-bit parameters by strings such as "torch.cuda.FloatTensor".

    Args:
        device: the device that takes the place of a CUDA device.
    """
    tensor_to, tensor_type = torch.Tensor.to, torch.Tensor.type

    def to(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ANN401
        args = tuple(device if _names_cuda(arg) else arg for arg in args)
        return tensor_to(tensor, *args, **_redirected(kwargs, device))

    def type_of(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        name = None if args or kwargs else CUDA_TYPE_NAMES.get(tensor.dtype)
        return name or tensor_type(tensor, *args, **kwargs)

    def unchanged(tensor: torch.Tensor, *_args: object, **_kwargs: object) -> torch.Tensor:
        return tensor

    def on_device(tensor: torch.Tensor, *_args: object, **_kwargs: object) -> torch.Tensor:
        return tensor if device == CPU else tensor_to(tensor, device)

    methods = {"cuda": on_device, "pin_memory": unchanged, "to": to, "type": type_of}
    return [
        *((torch, name, _redirected_factory(getattr(torch, name), device)) for name in FACTORIES),
        *((torch.Tensor, name, _redirected_factory(getattr(torch.Tensor, name), device)) for name in METHODS),
        *((torch.Tensor, name, method) for name, method in methods.items()),
        (torch.cuda, "current_device", lambda: device),
        (torch.cuda, "synchronize", lambda *_args, **_kwargs: None),
    ]


class CpuRNGStatesTracker:
    """A replacement of Megatron's CudaRNGStatesTracker whose named random streams use the CPU generator.

    Dropout is off in this project, so the streams are only used for weight initialization.
    """

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        self.reset()

    def is_initialized(self) -> bool:
        """Return whether a stream exists."""
        return bool(self.states_)

    def reset(self) -> None:
        """Delete all streams."""
        self.states_: dict[str, torch.Tensor] = {}

    def get_states(self) -> dict[str, torch.Tensor]:
        """Return the state of each stream by name."""
        return dict(self.states_)

    def set_states(self, states: dict[str, torch.Tensor]) -> None:
        """Restore states that `get_states` returned."""
        self.states_ = dict(states)

    def add(self, name: str, seed: int) -> None:
        """Create the stream `name` with a seed; assert that there is none of this name."""
        assert name not in self.states_, f"random stream {name} already exists"
        kept = torch.get_rng_state()
        torch.manual_seed(seed)
        self.states_[name] = torch.get_rng_state()
        torch.set_rng_state(kept)

    @contextlib.contextmanager
    def fork(self, name: str = "model-parallel-rng") -> Iterator[None]:
        """Use the stream `name` as the default generator inside the block, and restore the former state after it."""
        kept = torch.get_rng_state()
        torch.set_rng_state(self.states_[name])
        try:
            yield
        finally:
            self.states_[name] = torch.get_rng_state()
            torch.set_rng_state(kept)


def _splits_as_numbers(dispatcher: Any, point: str, tokens_per_expert: Any = None) -> Any:  # noqa: ANN401
    """Replace `MoEAlltoAllTokenDispatcher._maybe_dtoh_and_synchronize`, which copies on a CUDA stream."""
    # The dispatcher passes the splits to all-to-all, which needs numbers; they are on the host already.
    if point == dispatcher.cuda_dtoh_point:
        for name in ("input_splits", "output_splits", "output_splits_tp"):
            splits = getattr(dispatcher, name)
            if isinstance(splits, torch.Tensor):
                setattr(dispatcher, name, splits.numpy())
    return tokens_per_expert


def _gather_first_dim(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a gather along dim 0 for uneven sizes: gloo needs equal ones, so tensors are padded to the longest."""

    def gather(
        tensor: torch.Tensor,
        group: dist.ProcessGroup,
        output_split_sizes: Sequence[int] | None = None,
        use_global_buffer: bool = False,
    ) -> torch.Tensor:
        if output_split_sizes is None or group.size() == 1:
            return original(tensor, group, output_split_sizes, use_global_buffer)
        padded = tensor.new_zeros(max(output_split_sizes), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        gathered = [torch.empty_like(padded) for _ in output_split_sizes]
        dist.all_gather(gathered, padded, group=group)
        return torch.cat([part[:size] for part, size in zip(gathered, output_split_sizes, strict=True)])

    return gather


def _reduce_scatter_first_dim(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a reduce-scatter along dim 0 for uneven sizes, as an all-reduce and a slice, as gloo needs equal ones."""

    def reduce_scatter(
        tensor: torch.Tensor,
        group: dist.ProcessGroup,
        input_split_sizes: Sequence[int] | None = None,
        use_global_buffer: bool = False,
    ) -> torch.Tensor:
        if input_split_sizes is None or group.size() == 1:
            return original(tensor, group, input_split_sizes, use_global_buffer)
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total.split(list(input_split_sizes))[group.rank()].clone()

    return reduce_scatter


_is_installed = False


def install(device: torch.device = CPU) -> None:
    """Redirect Megatron-core's CUDA calls to the CPU, once per process. Call it before models are built.

    Args:
        device: the device that takes the place of a CUDA device; a rehearsal names another one than the CPU.
    """
    global _is_installed
    if _is_installed:
        return
    _is_installed = True
    # Megatron fuses operations such as bias-dropout-add with torch.compile, which needs a C++ compiler at run time.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # This advice only applies to GPUs, and every rank would print it.
    warnings.filterwarnings("ignore", message=r".*CUDA_DEVICE_MAX_CONNECTIONS")
    # `with torch.device("meta")` recognizes factories by a table that torch makes at its first use, from the attributes
    # of its module: it must hold the functions that are called in the end.
    _device_constructors()
    for owner, name, replacement in cpu_replacements(device):
        setattr(owner, name, replacement)

    from megatron.core.tensor_parallel import mappings
    from megatron.core.tensor_parallel import random as megatron_random
    from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher

    from megatron_prime.parallel import gloo
    from megatron_prime.parallel.adam import install as install_adam

    megatron_random.CudaRNGStatesTracker = CpuRNGStatesTracker  # type: ignore[assignment, misc]
    megatron_random._get_cuda_rng_state = lambda *_args, **_kwargs: torch.get_rng_state()
    megatron_random._set_cuda_rng_state = lambda state, *_args, **_kwargs: torch.set_rng_state(state)
    dispatcher: Any = MoEAlltoAllTokenDispatcher
    dispatcher.cuda_dtoh_stream = object()  # The dispatcher creates a CUDA stream if this is None.
    dispatcher._maybe_dtoh_and_synchronize = _splits_as_numbers
    mappings._gather_along_first_dim = _gather_first_dim(mappings._gather_along_first_dim)
    mappings._reduce_scatter_along_first_dim = _reduce_scatter_first_dim(
        mappings._reduce_scatter_along_first_dim
    )
    install_adam()
    gloo.install()
