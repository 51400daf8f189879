"""The receiving end of a weight sync in this process: copies blocks into tensors and proves that each is complete."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megatron_prime.rollout.engine import NO_WEIGHTS, WeightSyncError
from megatron_prime.types import WeightBlock

_MAX_NAMES_IN_ERROR = 8


def tensor_checksum(tensor: Tensor) -> str:
    """Return a 64-bit hex digest of a tensor's bytes. Equal values in different dtypes have different digests."""
    # The bytes are taken, because numpy has no bfloat16.
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
    return hashlib.blake2b(raw.tobytes(), digest_size=8).hexdigest()


@dataclass(slots=True)
class _Coverage:
    """The entries of one tensor that were written in this sync."""

    dim: int | None = None
    """The dim that this sync cuts the tensor along; None until a partial block arrives."""
    intervals: list[tuple[int, int]] = field(default_factory=list)
    num_elements: int = 0


class WeightIntake:
    """Receives weight syncs into a fixed set of tensors.

    `receive` is a whole sync. It consists of `begin`, `load` for every bucket of blocks, and `end`, which can also be
    called one by one.

    Args:
        tensors: the tensors that a sync must write completely, by HF name; they are written in place.
        aliases: tied HF name -> the name in `tensors` that stands for it. Tied names must not be sent.
    """

    def __init__(self, tensors: Mapping[str, Tensor], aliases: Mapping[str, str] | None = None) -> None:
        self._tensors = dict(tensors)
        self.aliases = dict(aliases or {})
        """Tied HF name -> the name that is sent for it."""
        self._coverage: dict[str, _Coverage] = {}
        self._incoming_version: int | None = None
        self._is_closed = False
        self.policy_version = NO_WEIGHTS
        """Version of the complete weights; NO_WEIGHTS while there are none."""

    def receive(self, policy_version: int, buckets: Iterable[Iterable[WeightBlock]]) -> None:
        """Take in a whole sync. The blocks of a bucket may share memory that the next bucket overwrites.

        Raises:
            ValueError: a negative version, or blocks that do not fit, see `load`.
            WeightSyncError: tensors were not written completely; there are then no valid weights.
        """
        self.begin(policy_version)
        try:
            for blocks in buckets:
                self.load(blocks)
            self.end()
        finally:
            # After an error in the middle, the next sync starts afresh.
            self._incoming_version = None

    def begin(self, policy_version: int) -> None:
        """Open a sync. The old weights are invalid from here on.

        Raises:
            ValueError: the version is negative.
            WeightSyncError: a sync is open already, or the intake is closed.
        """
        if policy_version < 0:
            raise ValueError(f"policy_version = {policy_version} must not be negative")
        if self._is_closed:
            raise WeightSyncError("the engine is closed")
        if self._incoming_version is not None:
            raise WeightSyncError(
                f"the weight sync to version {self._incoming_version} is still open; end it before "
                f"the one to {policy_version}"
            )
        # Blocks are written in place, so from here on the tensors are a mixture until the sync is complete.
        self._coverage = {name: _Coverage() for name in self._tensors}
        self._incoming_version = policy_version
        self.policy_version = NO_WEIGHTS

    def load(self, blocks: Iterable[WeightBlock]) -> None:
        """Copy blocks, cast to the tensors' dtype; the caller may overwrite them afterwards.

        Raises:
            WeightSyncError: no sync is open.
            ValueError: unknown tensor, block outside of its tensor, or entries written twice.
        """
        if self._incoming_version is None:
            raise WeightSyncError("weights arrived outside a sync: begin one first")
        for block in blocks:
            self._load_block(block)

    def end(self) -> None:
        """Close the sync. Raises WeightSyncError naming incomplete tensors: then no weights are valid."""
        version = self._incoming_version
        if version is None:
            raise WeightSyncError("no weight sync is open: begin one first")
        self._incoming_version = None
        missing = [
            f"{name} ({self._coverage[name].num_elements} of {tensor.numel()})"
            for name, tensor in self._tensors.items()
            if self._coverage[name].num_elements != tensor.numel()
        ]
        self._coverage = {}
        if missing:
            more = len(missing) - _MAX_NAMES_IN_ERROR
            listed = ", ".join(missing[:_MAX_NAMES_IN_ERROR]) + (f" and {more} more" if more > 0 else "")
            raise WeightSyncError(
                f"the sync to version {version} is incomplete, elements written: {listed}; the engine has no "
                "valid weights until a whole sync succeeds"
            )
        self.policy_version = version

    def checksums(self) -> dict[str, str]:
        """Return `tensor_checksum` of every tensor by HF name."""
        return {name: tensor_checksum(tensor) for name, tensor in self._tensors.items()}

    def require_weights(self) -> None:
        """Raise WeightSyncError unless there are complete weights."""
        if self._incoming_version is not None:
            raise WeightSyncError(f"can't generate while the weight sync to {self._incoming_version} is open")
        if self.policy_version == NO_WEIGHTS:
            raise WeightSyncError("can't generate: no weight sync has succeeded yet, or the last one failed")

    def close(self) -> None:
        """Forget the tensors, so that their memory can be freed, and refuse further syncs."""
        self._is_closed = True
        self._tensors, self.aliases, self._coverage = {}, {}, {}
        self.policy_version = NO_WEIGHTS

    def _load_block(self, block: WeightBlock) -> None:
        name = block.hf_name
        if name in self.aliases:
            raise ValueError(f"{name} is tied to {self.aliases[name]} in this model: send the latter alone")
        if name not in self._tensors:
            raise ValueError(f"the engine's model has no tensor {name!r}")
        target = self._tensors[name]
        _check_shape(block, target)
        length = block.tensor.shape[block.dim]
        _mark_written(self._coverage[name], block, length, is_whole=length == target.shape[block.dim])
        with torch.no_grad():
            # `copy_` casts, and autograd would refuse to write into a parameter in place.
            target.narrow(block.dim, block.start, length).copy_(block.tensor)


def _check_shape(block: WeightBlock, target: Tensor) -> None:
    """Raise ValueError unless the block lies inside the tensor and is whole in all dims but one."""
    shape = list(block.tensor.shape)
    fits = len(shape) == target.dim() and 0 <= block.dim < target.dim()
    if fits:
        fits = block.start >= 0 and block.start + shape[block.dim] <= target.shape[block.dim]
        fits = fits and all(
            size == whole
            for dim, (size, whole) in enumerate(zip(shape, target.shape, strict=True))
            if dim != block.dim
        )
    if not fits:
        raise ValueError(
            f"a block of {block.hf_name} with shape {shape} at {block.start} along dim {block.dim} does not "
            f"fit into the engine's tensor of shape {list(target.shape)}"
        )


def _mark_written(coverage: _Coverage, block: WeightBlock, length: int, *, is_whole: bool) -> None:
    """Record the block as written. Raises ValueError for an overlap with earlier blocks or a cut along another dim.

    Completeness is checked by counting elements, so an entry written twice would hide one that never came.
    """
    start, stop = block.start, block.start + length
    # After some elements were written, a whole tensor overlaps with them, and no dim means that they were a whole
    # tensor.
    written_twice = coverage.num_elements > 0 and (
        is_whole
        or coverage.dim is None
        or any(start < other_stop and other_start < stop for other_start, other_stop in coverage.intervals)
    )
    if coverage.dim not in (None, block.dim):
        raise ValueError(f"one sync cuts {block.hf_name} along dim {coverage.dim} and along dim {block.dim}")
    if written_twice:
        raise ValueError(
            f"entries [{start}, {stop}) along dim {block.dim} of {block.hf_name} were already "
            "written in this sync"
        )
    if not is_whole:
        coverage.dim = block.dim
    coverage.intervals.append((start, stop))
    coverage.num_elements += block.tensor.numel()
