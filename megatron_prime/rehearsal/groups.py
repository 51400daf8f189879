"""Process groups without other processes: every call is recorded and answered at once, from this rank's own data.

Tensors on the device have no content, so nothing is written to them. In host memory, a gather returns this rank's part
in the place of every other rank's, and a reduction or broadcast leaves what the rank has. A vote of the ranks is thus
unanimous, and objects that are gathered are all this rank's.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import _create_work_from_future  # type: ignore[attr-defined]
from torch.futures import Future

from megatron_prime.rehearsal.collectives import KINDS, CollectiveRecord, Group, GroupCalls, call_of

BACKEND = "rehearsal"
Answer = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], None]


class RehearsedGroup(dist.ProcessGroup):
    """A process group of which only this rank exists."""

    record: ClassVar[CollectiveRecord] = CollectiveRecord()
    """The calls of all groups of this process."""
    is_known: ClassVar[Callable[[torch.Tensor], bool]]
    """Returns whether a tensor has content."""
    fill: ClassVar[Answer]
    """Fills output tensors with a rank's input tensor; it knows what the content of device tensors is."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]
        self._rank, self._size = rank, size
        self.described = Group("", ())
        """Name and global ranks; set when the group is complete."""

    def rank(self) -> int:
        """Return this rank's number in the group."""
        return self._rank

    def size(self) -> int:
        """Return the number of ranks."""
        return self._size

    @property
    def group_name(self) -> Any:  # noqa: ANN401
        """The name by which torch registers the group."""
        return dist.distributed_c10d._world.pg_names[self]  # type: ignore[index]

    @staticmethod
    def has_content(kind: str, args: Sequence[Any]) -> bool:
        """Return whether a call has anything to answer with; data that depends on weights has not."""
        if kind in ("recv", "barrier"):
            return kind == "recv"
        return any(RehearsedGroup.is_known(tensor) for tensor in _flat(args[1:2]))

    def call(self, method: str, args: Sequence[Any]) -> dist.Work:
        """Record a call and answer it."""
        self.record.note(self.described, call_of(method, self.described, args))
        kind = KINDS[method]
        if not self.has_content(kind, args):
            return _done(_flat(args[0]) if args else [])
        if kind == "all_gather":
            outputs, inputs = _flat(args[0]), _flat(args[1])
            for index, source in enumerate(inputs):
                share = len(outputs) // len(inputs)
                RehearsedGroup.fill(outputs[index * share : (index + 1) * share], [source])
        elif kind == "reduce_scatter":
            own = [
                whole[self._rank] if isinstance(whole, (list, tuple)) else whole.chunk(self._size)[self._rank]
                for whole in (args[1] if isinstance(args[1], (list, tuple)) else [args[1]])
            ]
            RehearsedGroup.fill(_flat(args[0]), own)
        elif kind == "all_to_all":
            outputs, inputs = _flat(args[0]), _flat(args[1])
            RehearsedGroup.fill(outputs, inputs)
        elif kind == "recv" and args[0][0].numel() == 1:
            # Ranks send each other their own number when they connect (parallel/pipeline_messages.py).
            sender = torch.tensor([self.described.ranks[args[1]]], dtype=args[0][0].dtype)
            RehearsedGroup.fill(args[0], [sender])
        return _done(_flat(args[0]) if args else [])


def _method(name: str) -> Callable[..., dist.Work]:
    def call(group: RehearsedGroup, *args: Any, **named: Any) -> dist.Work:  # noqa: ANN401
        return group.call(name, [*args, *named.values()])

    return call


for _name in KINDS:
    setattr(RehearsedGroup, _name, _method(_name))


def _flat(value: Any) -> list[torch.Tensor]:  # noqa: ANN401
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for each in value for tensor in _flat(each)]
    return []


def _done(result: Any) -> dist.Work:  # noqa: ANN401
    future: Future[Any] = Future()
    future.set_result(result)
    return _create_work_from_future(future)


def join_alone(rank: int, world_size: int) -> CollectiveRecord:
    """Join a job of `world_size` ranks as the only process; all groups made from now on are rehearsed.

    Returns:
        The record of all collectives.
    """
    dist.Backend.register_backend(
        BACKEND,
        lambda _store, rank, size, _timeout: RehearsedGroup(rank, size),
        devices=["cpu", "cuda", "meta"],
    )
    new_group = dist.new_group

    def rehearsed_group(
        ranks: Sequence[int] | None = None,
        timeout: timedelta | None = None,
        backend: str | None = None,
        *args: Any,  # noqa: ANN401
        **named: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        named.pop("pg_options", None)
        description = named.get("group_desc") or "group"
        group = new_group(ranks, timeout, BACKEND, *args, **named)
        if isinstance(group, RehearsedGroup):
            whole = range(world_size) if ranks is None else ranks
            group.described = Group(description, tuple(sorted(whole)))
            RehearsedGroup.record.groups.setdefault(group.described, GroupCalls())
        return group

    dist.init_process_group(BACKEND, store=dist.HashStore(), rank=rank, world_size=world_size)
    everyone = dist.group.WORLD
    assert isinstance(everyone, RehearsedGroup)
    everyone.described = Group("WORLD", tuple(range(world_size)))
    dist.new_group = rehearsed_group
    return RehearsedGroup.record
