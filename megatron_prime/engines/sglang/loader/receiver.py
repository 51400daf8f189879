"""The custom weight loader of the SGLang servers: receives slices of the policy's weights into SGLang's parameters.

    trainer rank 0 --one POST per server, instructions for each TP rank--> SGLang --receive(model, [(text, tensor)])
    training ranks --slices, then their checksums, by gloo, NCCL or shared memory--> memory of the parameters

Slices are written where they belong without a whole tensor in between; of weights that this process holds already only
the changes come. In both cases everything is then read back from the parameters and compared with the senders'
checksums. See `wire` for the keys by which trainer and receiver coordinate.
"""

import functools
import json
import time
import zlib
from base64 import b64decode
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from .changes import packed_size, part_sizes, unpack
from .parameters import ParameterViews
from .signing import SignedStore
from .staging import map_staging, staging_offsets
from .wire import (
    PROTOCOL,
    UNKNOWN_LAYOUT,
    ChecksumError,
    ProcessGroup,
    Slice,
    check_nccl,
    close_groups,
    exchange,
    group_messages,
    make_group,
    nccl_version,
    verify_checksums,
)

_POLL_S = 0.02

_Views = list[tuple[int, list[tuple[int, torch.Tensor]]]]
"""The sources of a bucket, each with its slices: the dim that they are cut along, and views of the parameters."""
_Layout = list[list[tuple[int, list[Slice]]]]
"""For each bucket the sources, by rank in the group, and the slices that each of them sends, in order."""


class _Instructions(NamedTuple):
    """The request of one weight sync to one tensor-parallel rank."""

    attempt: str
    rank: int
    """Index of this receiver among all receivers of the engine."""
    store: tuple[str, int]
    key: str
    """Key that signs the attempt's values in the store."""
    backend: str
    nccl: str | None
    """Version of the trainer's NCCL; None if it is not used."""
    timeout_s: float
    buckets: _Layout | None
    """None when this process does not know the layout and the trainer must send it."""


# SGLang calls `receive` once per sync in the same process, so that module state carries over from one to the next.
_groups: dict[str, ProcessGroup] = {}
"""The process group of the last sync by its name, for reuse: connecting costs seconds on a large job."""
_layouts: dict[str, _Layout] = {}
"""The layout of the last sync by its name. It is the same in every sync, so that it is sent only once."""
_held: set[str] = set()
"""The label of the weights that the last sync has proven to be here; empty before, and while they are overwritten."""


def receive(model: torch.nn.Module, named_tensors: Sequence[tuple[str, torch.Tensor]]) -> None:
    """Take part in a weight sync; SGLang calls this as its `--custom-weight-loader`.

    Never raises, because an exception would end the whole server: errors are reported to the trainer.

    Args:
        model: SGLang's model on this tensor-parallel rank.
        named_tensors: one pair; the instructions as JSON in place of a name, and an empty tensor.
    """
    try:
        instructions = _parse(named_tensors[0][0])
        host, port = instructions.store
        prefix = f"{instructions.attempt}/"
        store = SignedStore.connect(host, port, instructions.timeout_s, instructions.key, prefix)
    except Exception as error:  # noqa: BLE001 - must not raise; the trainer waits for the hello in vain and gives up
        print(f"weight sync: no trainer reached: {error!r}", flush=True)  # noqa: T201 - the server's log
        return
    try:
        with torch.no_grad():
            _take_part(model, instructions, store)
    except Exception as error:  # noqa: BLE001 - must not raise
        # The group may be in the middle of a message; the next sync makes a new one.
        close_groups(_groups, instructions.backend)
        text = f"{type(error).__name__}: {error}"
        print(f"weight sync {instructions.attempt} failed: {text}", flush=True)  # noqa: T201
        _try_report(store, instructions.rank, {"error": text, "is_damaged": isinstance(error, ChecksumError)})


def _try_report(store: SignedStore, rank: int, report: dict[str, Any]) -> None:
    try:
        store.set(f"report/{rank}", report)
    except Exception as unreachable:  # noqa: BLE001 - without a trainer nobody reads the report
        print(f"weight sync: the trainer is gone: {unreachable!r}", flush=True)  # noqa: T201


def _parse(text: str) -> _Instructions:
    raw = json.loads(text)
    if raw["protocol"] != PROTOCOL:
        raise ValueError(
            f"the trainer speaks protocol {raw['protocol']}, this receiver {PROTOCOL}: start the server with the "
            "trainer's own receiver package"
        )
    host, port = raw["store"]
    if raw.get("body") is not None:
        _layouts.clear()
        _layouts[raw["layout"]] = _parse_layout(raw["body"])
    return _Instructions(
        raw["attempt"],
        raw["rank"],
        (host, port),
        raw["key"],
        raw["backend"],
        raw["nccl"],
        raw["timeout_s"],
        _layouts.get(raw["layout"]),
    )


def _parse_layout(body: dict[str, Any]) -> _Layout:
    common = json.loads(zlib.decompress(b64decode(body["slices"])))
    names, dtypes = common["names"], common["dtypes"]
    sources = iter(body["sources"])
    layout: _Layout = []
    for bucket in common["buckets"]:
        by_source: dict[int, list[Slice]] = {}
        for s in bucket:
            row = Slice(names[s[0]], s[1], s[2], s[3], s[4], dtypes[s[5]])
            by_source.setdefault(next(sources), []).append(row)
        layout.append(list(by_source.items()))
    return layout


def _take_part(model: torch.nn.Module, instructions: _Instructions, store: SignedStore) -> None:
    """Check that the slices fit the model, say hello, receive all buckets, and report the sum of the checksums."""
    hello = f"hello/{instructions.rank}"
    if instructions.buckets is None:
        store.set(hello, {"error": UNKNOWN_LAYOUT})
        return
    try:
        check_nccl(instructions.nccl, nccl_version())
        parameters = ParameterViews(model)
        buckets: list[_Views] = [
            [(source, [(s.dim, parameters.find(s)) for s in slices]) for source, slices in bucket]
            for bucket in instructions.buckets
        ]
        parameters.require_all(s for bucket in instructions.buckets for _, slices in bucket for s in slices)
    except (ValueError, KeyError, AttributeError) as error:
        store.set(hello, {"error": f"{error}"})
        return
    # Everything that can be refused has been checked by now: from here on the parameters are overwritten.
    store.set(hello, {"groups": list(_groups), "held": list(_held)})
    go = _await_go(store, instructions.timeout_s)
    if str(instructions.rank) not in go["ranks"]:
        # Another rank of this server failed to say hello, so the whole server sits this attempt out.
        return
    is_patched = instructions.rank in go["patched"]
    if is_patched and go["base"] not in _held:
        raise ValueError(f"changes since {go['base']} do not apply to {[*_held] or 'unproven weights'}")
    _held.clear()
    if instructions.backend == "ipc":
        receive_bucket = _StagingReader(instructions, store).receive
    else:
        group = _group(go, instructions, store)
        receive = _receive_changes if is_patched else _receive_bucket
        receive_bucket = functools.partial(receive, group, instructions)
    parameters.clear_padding()
    digest = [0, 0]
    for bucket in buckets:
        sums = receive_bucket(bucket)
        digest = [(total + int(part)) % (1 << 64) for total, part in zip(digest, sums.tolist(), strict=True)]
    _held.add(go["label"])
    store.set(f"report/{instructions.rank}", {"digest": digest})


def _await_go(store: SignedStore, timeout_s: float) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    while (go := store.get("go")) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the trainer did not start the transfer in {timeout_s:g} s")
        time.sleep(_POLL_S)
    return go


def _group(go: dict[str, Any], instructions: _Instructions, store: SignedStore) -> ProcessGroup:
    """Return the process group that the trainer named: the last sync's, or a new one."""
    name = go["group"]
    if name not in _groups:
        close_groups(_groups, instructions.backend)
        rank = go["ranks"][str(instructions.rank)]
        _groups[name] = make_group(
            instructions.backend, store, name, rank, go["size"], instructions.timeout_s
        )
    return _groups[name]


def _receive_bucket(group: ProcessGroup, instructions: _Instructions, bucket: _Views) -> torch.Tensor:
    """Write a bucket into the parameters; return the sum of its checksums, int64 [2].

    Raises RuntimeError when a transfer fails or a checksum is wrong.
    """
    messages: list[tuple[int, torch.Tensor]] = []
    packed_messages: list[tuple[torch.Tensor, list[torch.Tensor]]] = []
    expected: list[tuple[list[torch.Tensor], torch.Tensor]] = []
    for source, slices in bucket:
        direct, packed = group_messages(slices)
        messages += [(source, view.reshape(-1)) for view in direct]
        for part in packed:
            flat = torch.empty(sum(v.numel() for v in part), dtype=part[0].dtype, device=part[0].device)
            messages.append((source, flat))
            packed_messages.append((flat, part))
        views = [view for _, view in slices]
        checksums = torch.empty(len(views), 2, dtype=torch.int64, device=views[0].device)
        messages.append((source, checksums))
        expected.append((views, checksums))
    exchange(group, [], messages, instructions.backend, instructions.timeout_s)
    for flat, part in packed_messages:
        for view, piece in zip(part, flat.split([v.numel() for v in part]), strict=True):
            view.copy_(piece.view(view.shape))
    # Taken from the parameters' own memory: a slice that was written to a wrong place, or not at all, shows too.
    return torch.stack([verify_checksums(views, checksums) for views, checksums in expected]).sum(0)


def _receive_changes(group: ProcessGroup, instructions: _Instructions, bucket: _Views) -> torch.Tensor:
    """Write the changes of a bucket into the parameters, otherwise like `_receive_bucket`."""
    parts: list[tuple[list[torch.Tensor], torch.Tensor]] = []
    headers: list[tuple[int, torch.Tensor]] = []
    for source, slices in bucket:
        views = [view for _, view in slices]
        header = torch.empty(len(views), 3, dtype=torch.int64, device=views[0].device)
        parts.append((views, header))
        headers.append((source, header))
    exchange(group, [], headers, instructions.backend, instructions.timeout_s)
    messages: list[tuple[int, torch.Tensor]] = []
    unpacked: list[tuple[torch.Tensor, list[torch.Tensor], list[int]]] = []
    for (source, header), (views, _) in zip(headers, parts, strict=True):
        nums = header[:, 0].tolist()
        sizes = [size for view, num in zip(views, nums, strict=True) for size in part_sizes(view, num)]
        if sizes:
            message = torch.empty(packed_size(sizes), dtype=torch.uint8, device=header.device)
            messages.append((source, message))
            unpacked.append((message, views, nums))
    exchange(group, [], messages, instructions.backend, instructions.timeout_s)
    for message, views, nums in unpacked:
        unpack(message, views, nums)
    # Of all elements and not of the changed ones: so an element that differed before shows, too.
    return torch.stack([verify_checksums(views, header[:, 1:]) for views, header in parts]).sum(0)


class _StagingReader:
    """Takes buckets out of the buffer that the training rank on this device fills; see the sender's `ipc_sender`."""

    def __init__(self, instructions: _Instructions, store: SignedStore) -> None:
        self._store = store
        self._rank = instructions.rank
        self._timeout_s = instructions.timeout_s
        self._memory = map_staging(store.await_value(f"staging/{instructions.rank}", self._timeout_s))
        self._num_taken = 0

    def receive(self, bucket: _Views) -> torch.Tensor:
        """Write a bucket into the parameters; return the sum of its checksums, like `_receive_bucket`."""
        [(_, slices)] = bucket
        views = [view for _, view in slices]
        number, self._num_taken = self._num_taken, self._num_taken + 1
        filled = f"filled/{self._rank}/{number}"
        if self._store.await_value(filled, self._timeout_s) != "ok":
            raise RuntimeError("the training rank on this device gave up")
        half = self._memory.numel() // 2
        memory = self._memory[number % 2 * half :][:half]
        *offsets, end = staging_offsets([view.numel() * view.element_size() for view in views])
        for view, offset in zip(views, offsets, strict=False):
            flat = memory[offset : offset + view.numel() * view.element_size()]
            view.copy_(flat.view(view.dtype).view(view.shape))
        # A copy, since the sender overwrites this half as soon as it is marked as taken.
        checksums = memory[offsets[-1] : end].view(torch.int64).view(-1, 2).clone()
        total = verify_checksums(views, checksums)
        if memory.is_cuda:
            # The sender is another process: only the end of this stream's copies makes the half free.
            torch.cuda.synchronize()
        self._store.set(f"taken/{self._rank}/{number}", "ok")
        self._store.delete(filled)
        return total
