"""The engine's end of a weight sync: stock SGLang calls `receive` as its custom weight loader.

    trainer rank 0 --one POST a server, a manifest a TP rank--> SGLang --receive(model, [(manifest, empty tensor)])
    training ranks --slices, then their checksums, by gloo, NCCL or memory that both map--> memory of the parameters

This file and `sglang_staging` are copied beside each server and imported there as a package: standard library and torch
only, nothing else of ours.
The trainer and the receiver meet in a TCPStore that trainer rank 0 hosts, under the prefix of one attempt:

    hello/RANK   receiver: the manifest fits the model (or why not), and the process group that it kept
    go           trainer:  the process group to use, and the rank in it of each receiver that takes part
    report/RANK  receiver: checksums of what the parameters now hold, or what went wrong

Slices are written where they belong without a whole tensor in between. Everything is read back from the parameters
and compared with the sender's checksums. `receive` never raises: an exception would take the whole server down.
"""

import datetime
import functools
import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.distributed as dist

from .staging import map_staging, staging_offsets

PROTOCOL = 1
"""Both ends must have the same: the trainer sends it in the manifest."""
DIRECT_BYTES = 1 << 20
"""From this size on a slice that is contiguous where it lies is a message of its own, without a copy."""
UNKNOWN_LAYOUT = "unknown layout"
"""The hello of a receiver that has to be sent the slices' places (again)."""
_POLL_S = 0.02
BLOCK_SIZE = 128
"""Rows and columns that share a scale in block FP8."""
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 1 << 20
_FUSED = {
    "q_proj": ("qkv_proj", 0),
    "k_proj": ("qkv_proj", 1),
    "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}
"""HF module -> SGLang's module, and which of its parts."""
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight(_scale_inv)?")
_EXPERT_PARTS = {
    "gate_proj": ("w13_weight", 0),
    "w1": ("w13_weight", 0),
    "up_proj": ("w13_weight", 1),
    "w3": ("w13_weight", 1),
    "down_proj": ("w2_weight", 0),
    "w2": ("w2_weight", 0),
}


class Slice(NamedTuple):
    """One row of a manifest: where a slice belongs in this rank's shard of an HF tensor, and its size."""

    hf_name: str
    dim: int
    start: int
    """First row (or column) in the shard."""
    length: int
    num_elements: int
    dtype: str
    """Such as float32: what travels, and what the parameter must be."""


class ProcessGroup(Protocol):
    """What is used of torch's ProcessGroupGloo and ProcessGroupNCCL."""

    def send(self, tensors: list[torch.Tensor], rank: int, tag: int, /) -> dist.Work: ...  # noqa: D102
    def recv(self, tensors: list[torch.Tensor], rank: int, tag: int, /) -> dist.Work: ...  # noqa: D102
    def _start_coalescing(self) -> None: ...
    def _end_coalescing(self) -> dist.Work: ...


_Views = list[tuple[int, list[tuple[int, torch.Tensor]]]]
"""A bucket's sources; of each the parameters' views, with the dim that they are cut along."""
_Layout = list[list[tuple[int, list[Slice]]]]
"""Of each bucket the sources, by rank in the group, and what each sends, in order."""


class _Manifest(NamedTuple):
    """What one TP rank is told."""

    attempt: str
    rank: int
    """Index of this receiver among those of the attempt."""
    store: tuple[str, int]
    backend: str
    timeout_s: float
    buckets: _Layout | None
    """None when this process has not been told yet, or no longer knows: the trainer must send them."""


_kept: dict[str, ProcessGroup] = {}
"""The process group of the last sync by its name, for the next one."""
_layouts: dict[str, _Layout] = {}
"""The buckets of the last sync by their name: they are alike in every sync and sent once."""


def receive(model: torch.nn.Module, named_tensors: Sequence[tuple[str, torch.Tensor]]) -> None:
    """Entry point, by SGLang's `--custom-weight-loader`. Reports to the trainer whatever happens."""
    try:
        manifest = _parse(named_tensors[0][0])
        host, port = manifest.store
        timeout = datetime.timedelta(seconds=manifest.timeout_s)
        store: dist.Store = dist.TCPStore(host, port, is_master=False, timeout=timeout)
        store = dist.PrefixStore(manifest.attempt, store)
    except Exception as error:  # noqa: BLE001 - see the module; the trainer misses the hello and gives up
        print(f"weight sync: no trainer reached: {error!r}", flush=True)  # noqa: T201 - the server's log
        return
    try:
        with torch.no_grad():
            _take_part(model, manifest, store)
    except Exception as error:  # noqa: BLE001 - see the module
        _kept.clear()
        text = f"{type(error).__name__}: {error}"
        print(f"weight sync {manifest.attempt} failed: {text}", flush=True)  # noqa: T201
        _try_to_say(store, f"report/{manifest.rank}", {"error": text})


def _try_to_say(store: dist.Store, key: str, value: object) -> None:
    try:
        store.set(key, json.dumps(value))
    except Exception as error:  # noqa: BLE001 - the trainer is gone; so is the reader of this
        print(f"weight sync: the trainer is gone: {error!r}", flush=True)  # noqa: T201


def _parse(text: str) -> _Manifest:
    raw = json.loads(text)
    if raw["protocol"] != PROTOCOL:
        raise ValueError(
            f"the trainer speaks protocol {raw['protocol']}, this receiver {PROTOCOL}: start the server with the "
            "trainer's own receiver file"
        )
    host, port = raw["store"]
    if raw.get("body") is not None:
        _layouts.clear()
        _layouts[raw["layout"]] = _buckets(json.loads(raw["body"]))
    return _Manifest(
        raw["attempt"],
        raw["rank"],
        (host, port),
        raw["backend"],
        raw["timeout_s"],
        _layouts.get(raw["layout"]),
    )


def _buckets(body: dict[str, Any]) -> _Layout:
    names, dtypes = body["names"], body["dtypes"]
    return [
        [
            (source, [Slice(names[s[0]], s[1], s[2], s[3], s[4], dtypes[s[5]]) for s in slices])
            for source, slices in bucket
        ]
        for bucket in body["buckets"]
    ]


def _take_part(model: torch.nn.Module, manifest: _Manifest, store: dist.Store) -> None:
    if manifest.buckets is None:
        store.set(f"hello/{manifest.rank}", json.dumps({"error": UNKNOWN_LAYOUT}))
        return
    try:
        places = Places(model)
        targets = [
            [(source, [(s.dim, places.find(s)) for s in slices]) for source, slices in bucket]
            for bucket in manifest.buckets
        ]
        places.require_all(s for bucket in manifest.buckets for _, slices in bucket for s in slices)
    except (ValueError, KeyError, AttributeError) as error:
        store.set(f"hello/{manifest.rank}", json.dumps({"error": f"{error}"}))
        return
    store.set(f"hello/{manifest.rank}", json.dumps({"groups": list(_kept)}))
    go = _await_go(store, manifest.timeout_s)
    if str(manifest.rank) not in go["ranks"]:
        return
    if manifest.backend == "ipc":
        staging = _Staging(manifest, store)
        receive_bucket = staging.receive
    else:
        group = _group(go, manifest, store)
        receive_bucket = functools.partial(_receive_bucket, group, manifest)
    digest = [0, 0]
    for bucket in targets:
        sums = receive_bucket(bucket)
        digest = [(total + int(part)) % (1 << 64) for total, part in zip(digest, sums.tolist(), strict=True)]
    store.set(f"report/{manifest.rank}", json.dumps({"digest": digest}))


def _await_go(store: dist.Store, timeout_s: float) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    while not store.check(["go"]):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the trainer did not start the transfer in {timeout_s:g} s")
        time.sleep(_POLL_S)
    return json.loads(store.get("go"))


def _group(go: dict[str, Any], manifest: _Manifest, store: dist.Store) -> ProcessGroup:
    name = go["group"]
    if name not in _kept:
        _kept.clear()
        rank = go["ranks"][str(manifest.rank)]
        _kept[name] = make_group(
            manifest.backend, dist.PrefixStore(name, store), rank, go["size"], manifest.timeout_s
        )
    return _kept[name]


def make_group(backend: str, store: dist.Store, rank: int, size: int, timeout_s: float) -> ProcessGroup:
    """A process group beside all others of this process; collective over its `size` ranks."""
    timeout = datetime.timedelta(seconds=timeout_s)
    if backend == "gloo":
        return cast(ProcessGroup, dist.ProcessGroupGloo(store, rank, size, timeout))
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    return cast(ProcessGroup, dist.ProcessGroupNCCL(store, rank, size, options))


def _receive_bucket(group: ProcessGroup, manifest: _Manifest, bucket: _Views) -> torch.Tensor:
    """Write a bucket into the parameters; returns the sum of its checksums, int64 [2]. Raises when one is wrong."""
    messages: list[tuple[int, torch.Tensor]] = []
    unpacking: list[tuple[torch.Tensor, list[torch.Tensor]]] = []
    claims: list[tuple[list[torch.Tensor], torch.Tensor]] = []
    for source, slices in bucket:
        direct, packed = grouped(slices)
        messages += [(source, view.reshape(-1)) for view in direct]
        for part in packed:
            flat = torch.empty(sum(v.numel() for v in part), dtype=part[0].dtype, device=part[0].device)
            messages.append((source, flat))
            unpacking.append((flat, part))
        views = [view for _, view in slices]
        claim = torch.empty(len(views), 2, dtype=torch.int64, device=views[0].device)
        messages.append((source, claim))
        claims.append((views, claim))
    exchange(group, [], messages, manifest.backend, manifest.timeout_s)
    for flat, part in unpacking:
        for view, piece in zip(part, flat.split([v.numel() for v in part]), strict=True):
            view.copy_(piece.view(view.shape))
    return torch.stack([_proven(views, claim) for views, claim in claims]).sum(0)


def _proven(views: list[torch.Tensor], claim: torch.Tensor) -> torch.Tensor:
    """Sum of the checksums, int64 [2], of what the parameters hold. Raises unless they are the claimed ones."""
    # From the parameters' own memory: what was written wrongly shows, and what was not written at all.
    held = torch.stack([checksum(view) for view in views])
    if not torch.equal(held, claim):
        num_wrong = int((held != claim).any(dim=1).sum())
        raise RuntimeError(f"{num_wrong} of {len(views)} slices arrived with a wrong checksum")
    return held.sum(0).cpu()


class _Staging:
    """The buffer of two halves in which the training rank beside this one hands buckets over: see `transport_ipc`."""

    def __init__(self, manifest: _Manifest, store: dist.Store) -> None:
        self._store = store
        self._rank = manifest.rank
        self._timeout = datetime.timedelta(seconds=manifest.timeout_s)
        store.wait([f"staging/{manifest.rank}"], self._timeout)
        self._memory = map_staging(json.loads(store.get(f"staging/{manifest.rank}")))
        self._num_taken = 0

    def receive(self, bucket: _Views) -> torch.Tensor:
        """As `_receive_bucket`."""
        [(_, slices)] = bucket
        views = [view for _, view in slices]
        number, self._num_taken = self._num_taken, self._num_taken + 1
        filled = f"filled/{self._rank}/{number}"
        self._store.wait([filled], self._timeout)
        if self._store.get(filled) != b"ok":
            raise RuntimeError("the training rank beside this one gave up")
        half = self._memory.numel() // 2
        memory = self._memory[number % 2 * half :][:half]
        *offsets, end = staging_offsets([view.numel() * view.element_size() for view in views])
        for view, offset in zip(views, offsets, strict=False):
            flat = memory[offset : offset + view.numel() * view.element_size()]
            view.copy_(flat.view(view.dtype).view(view.shape))
        claim = memory[offsets[-1] : end].view(torch.int64).view(-1, 2).clone()
        total = _proven(views, claim)
        if memory.is_cuda:
            torch.cuda.synchronize()
        self._store.set(f"taken/{self._rank}/{number}", "ok")
        self._store.delete_key(filled)
        return total


def exchange(
    group: ProcessGroup,
    outgoing: Sequence[tuple[int, torch.Tensor]],
    incoming: Sequence[tuple[int, torch.Tensor]],
    backend: str,
    timeout_s: float,
) -> dict[int, str]:
    """Send to and receive from ranks of a group all at once; tensors of a pair match in order.

    Returns the faults of sends by rank: one receiver's death is nothing to the others. Raises RuntimeError when a
    receive fails, or with NCCL anything, since its group is then lost.
    """
    # Neither library knows all one-byte floats.
    outgoing = [(rank, _as_bytes(tensor)) for rank, tensor in outgoing]
    incoming = [(rank, _as_bytes(tensor)) for rank, tensor in incoming]
    timeout = datetime.timedelta(seconds=timeout_s)
    if backend == "nccl":
        group._start_coalescing()
        for rank, tensor in outgoing:
            group.send([tensor], rank, 0)
        for rank, tensor in incoming:
            group.recv([tensor], rank, 0)
        group._end_coalescing().wait(timeout)
        torch.cuda.synchronize()
        return {}
    awaited = [group.recv([tensor], rank, 0) for rank, tensor in incoming]
    faults = _send_each(group, outgoing, timeout)
    for work in awaited:
        work.wait(timeout)
    return faults


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor


def _send_each(
    group: ProcessGroup, outgoing: Sequence[tuple[int, torch.Tensor]], timeout: datetime.timedelta
) -> dict[int, str]:
    faults: dict[int, str] = {}
    works: list[tuple[int, dist.Work]] = []
    for rank, tensor in outgoing:
        try:
            if rank not in faults:
                works.append((rank, group.send([tensor], rank, 0)))
        except RuntimeError as error:
            faults[rank] = str(error)
    for rank, work in works:
        try:
            if rank not in faults:
                work.wait(timeout)
        except RuntimeError as error:
            faults[rank] = str(error)
    return faults


def grouped(
    slices: Sequence[tuple[int, torch.Tensor]],
) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
    """The messages that carry slices, given with the dim that they are cut along, from one rank to another.

    Both ends ask here. Returns the large ones that travel by themselves, since rows are contiguous wherever they lie,
    and the others to be packed, a list a dtype.
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
    """int64 [2]: sum of the elements' bits as integers, and the sum weighted by position, modulo 2**64.

    Of two tensors that differ in one element, in the order of elements, or by a block moved, one of the two differs
    (Fletcher's checksum in 64 bits).
    """
    words = tensor.detach().contiguous().view(-1).view(_WORDS[tensor.element_size()])
    total = torch.zeros(2, dtype=torch.int64, device=words.device)
    places = torch.arange(1, min(_CHUNK, words.numel()) + 1, device=words.device)
    for index, chunk in enumerate(words.split(_CHUNK)):
        values = chunk.long()
        plain = values.sum()
        total[0] += plain
        total[1] += values.mul_(places[: values.numel()]).sum() + plain * (index * _CHUNK)
    return total


class Places:
    """Where HF tensors' slices lie in a model of SGLang's, on this TP rank."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._parameters = dict(model.named_parameters())

    def find(self, row: Slice) -> torch.Tensor:
        """A view of the parameter's memory. Raises ValueError when the model has no such place."""
        shard = self._shard(row.hf_name)
        if shard.dtype != getattr(torch, row.dtype):
            raise ValueError(f"{row.hf_name} is {shard.dtype} here and {row.dtype} in the trainer")
        if row.dim >= shard.dim() or row.start + row.length > shard.shape[row.dim]:
            raise ValueError(
                f"{row.hf_name}: [{row.start}, {row.start + row.length}) along dim {row.dim} is outside of this "
                f"rank's {tuple(shard.shape)}"
            )
        view = shard.narrow(row.dim, row.start, row.length)
        if view.numel() != row.num_elements:
            raise ValueError(
                f"{row.hf_name}: a slice has {row.num_elements} elements in the trainer and {view.numel()} here"
            )
        return view

    def require_all(self, rows: Iterator[Slice]) -> None:
        """Raise ValueError unless the slices fill every parameter."""
        filled: dict[str, int] = dict.fromkeys(self._parameters, 0)
        for row in rows:
            filled[self._parameter_name(row.hf_name)] += row.num_elements
        missing = [
            f"{name} ({count} of {self._num_elements(name)})"
            for name, count in filled.items()
            if count != self._num_elements(name)
        ]
        if missing:
            listed = ", ".join(missing[:8])
            raise ValueError(f"{len(missing)} parameters would not be filled: {listed}")

    def _num_elements(self, name: str) -> int:
        parameter = self._parameters[name]
        module = self._model.get_submodule(name.rpartition(".")[0])
        vocabulary = getattr(module, "shard_indices", None)
        if vocabulary is not None and name.endswith(".weight"):
            # The rows beyond are padding.
            return int(vocabulary.num_org_elements) * math.prod(parameter.shape[1:])
        return parameter.numel()

    def _parameter_name(self, hf_name: str) -> str:
        expert = _EXPERT.fullmatch(hf_name)
        if expert:
            return f"{expert[1]}.{_EXPERT_PARTS[expert[3]][0]}{expert[4] or ''}"
        path, _, leaf = hf_name.rpartition(".")
        parent, _, module = path.rpartition(".")
        name = f"{parent}.{_FUSED[module][0]}.{leaf}" if module in _FUSED else hf_name
        if name not in self._parameters:
            raise ValueError(f"the server's model has no parameter {name} for {hf_name}")
        return name

    def _shard(self, hf_name: str) -> torch.Tensor:
        """This rank's part of an HF tensor, as a view."""
        name = self._parameter_name(hf_name)
        expert = _EXPERT.fullmatch(hf_name)
        if expert:
            return self._expert_shard(name, expert)
        parameter = self._parameters[name].data
        module = hf_name.split(".")[-2]
        if module not in _FUSED:
            return parameter
        fused, part = _FUSED[module]
        if fused == "gate_up_proj":
            half = parameter.shape[0] // 2
            return parameter.narrow(0, part * half, half)
        layer = self._model.get_submodule(name.rpartition(".")[0])
        sizes: list[int] = [
            int(layer.q_proj_shard_size),  # type: ignore[arg-type]
            int(layer.kv_proj_shard_size),  # type: ignore[arg-type]
            int(layer.v_proj_shard_size),  # type: ignore[arg-type]
        ]
        if hf_name.endswith("_scale_inv"):
            # A row of scales for each 128 rows.
            sizes = [-(-size // BLOCK_SIZE) for size in sizes]
        return parameter.narrow(0, sum(sizes[:part]), sizes[part])

    def _expert_shard(self, name: str, expert: re.Match[str]) -> torch.Tensor:
        if name not in self._parameters:
            raise ValueError(f"the server's model has no parameter {name} for {expert[0]}")
        layer: Any = self._model.get_submodule(name.rpartition(".")[0])
        index = layer._map_global_expert_id_to_local_expert_id(int(expert[2]))
        if not 0 <= index < self._parameters[name].shape[0]:
            raise ValueError(f"expert {expert[2]} of {expert[1]} is not on this rank of the server")
        parameter = self._parameters[name].data[index]
        target, part = _EXPERT_PARTS[expert[3]]
        if target == "w2_weight":
            return parameter
        half = parameter.shape[0] // 2
        return parameter.narrow(0, part * half, half)
