"""The methods of copying a Megatron model's weights to engine tensors that `reshard_measured` times, for one rank."""

import zlib
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.resharding.copy_services.gloo_copy_service import GlooCopyService
from megatron.core.resharding.refit import swap_model_weights

from megatron_prime.hf.convert import import_hf
from megatron_prime.hf.mapping import hf_shards, hf_tensors
from megatron_prime.models.builder import BuiltModel, build_model
from megatron_prime.parallel.platform import Platform
from megatron_prime.parallel.topology import Topology, build_topology
from megatron_prime.resharding.layouts import EngineLayout, local_parameters
from megatron_prime.resharding.summary import summary
from megatron_prime.resharding.transport import RankTransport, plan_for, training_layout


class _CpuCopyService(GlooCopyService):
    """Megatron-core's gloo service with another constructor: the original creates a CUDA stream."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.gloo_pg = dist.new_group(backend="gloo")
        self.send_ops = []
        self.recv_ops = []
        self._copy_stream = None


def _whole(name: str, dims: tuple[int, ...]) -> torch.Tensor:
    """Return a random HF tensor that is the same on every rank."""
    return torch.randn(dims, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


class Methods:
    """All methods on one case: a model in a training layout, and this rank's part of the engines."""

    def __init__(self, folder: Path, case: str, platform: Platform) -> None:
        tensor, pipeline = (2, 1) if case.startswith("tp2") else (1, 2)
        engine_tp = 1 if "2 engines" in case else 2
        self.without: dict[str, str] = {}
        self._last_is_megatron = False
        self._is_pipeline = pipeline == 2
        topology = build_topology(platform, tensor, pipeline)
        self._source = build_model(folder, topology, load_weights=False)
        self._parameters = dict(self._source.module.named_parameters())
        shape = self._source.shape
        self._hf = {name: _whole(name, dims) for name, dims in hf_tensors(shape).items()}
        import_hf(self._parameters, self._source.parameters, self._read)
        engines = EngineLayout.consecutive(2 // engine_tp, engine_tp)
        engine_rank = dist.get_rank() % engine_tp
        shards = hf_shards(shape, tp_size=engine_tp, tp_rank=engine_rank)
        self._shards = {shard.hf_name: shard for shard in shards}
        self._engine = {s.hf_name: self._read(s.hf_name, s.dim, s.hf_start, s.length).clone() for s in shards}
        plan = plan_for(shape, topology, engines, torch.float32)
        counted = summary(plan)
        self.num_parameters = sum(tensor.numel() for tensor in self._hf.values())
        self.network_bytes = counted.network_bytes
        self.delivered_bytes = counted.delivered_bytes
        self._transport = RankTransport(plan, self._parameters, topology, torch.float32)
        self._layout = training_layout(topology)
        self._peers = [local_parameters(shape, self._layout, rank) for rank in range(2)]
        self._target = self._megatron_target(folder, platform, engine_tp)

    def functions(self) -> dict[str, Callable[[], None]]:
        """Return, by name, functions that perform one complete sync."""
        found = {"ours": self._ours, "gather everything": self._gather, "memcpy": self._memcpy}
        if self._target is not None:
            self._service = _CpuCopyService()
            found["megatron-core"] = self._megatron
        return found

    def check(self) -> bool:
        """Return whether the last sync delivered every byte to this rank, and clear the engine for the next sync."""
        if self._last_is_megatron:
            assert self._target is not None
            module, parameters = dict(self._target.module.named_parameters()), self._target.parameters
            right = all(
                torch.equal(
                    module[p.megatron_name].narrow(piece.dim, piece.local_start, piece.length),
                    self._read(piece.hf_name, piece.dim, piece.hf_start, piece.length),
                )
                for p in parameters
                for piece in p.pieces
            )
        else:
            right = all(
                torch.equal(self._engine[s.hf_name], self._read(s.hf_name, s.dim, s.hf_start, s.length))
                for s in self._shards.values()
            )
        for tensor in self._engine.values():
            tensor.zero_()
        return right

    def _read(self, name: str, dim: int, start: int, length: int) -> torch.Tensor:
        return self._hf[name].narrow(dim, start, length)

    def _store(self, name: str, dim: int, start: int, block: torch.Tensor) -> None:
        """Copy the part of a block that belongs to this rank's engine."""
        shard = self._shards[name]
        begin = max(start, shard.hf_start)
        length = min(start + block.shape[dim], shard.hf_start + shard.length) - begin
        if length > 0:
            target = self._engine[name].narrow(dim, begin - shard.hf_start, length)
            target.copy_(block.narrow(dim, begin - start, length))

    def _ours(self) -> None:
        self._last_is_megatron = False
        for blocks in self._transport.deliver():
            for block in blocks:
                self._store(block.hf_name, block.dim, block.start, block.tensor)

    @torch.no_grad()
    def _gather(self) -> None:
        """Broadcast (PP) or all-gather (TP) each parameter, convert it to HF tensors, and load them."""
        self._last_is_megatron = False
        if self._is_pipeline:
            for owner, parameters in enumerate(self._peers):
                for p in parameters:
                    held = owner == dist.get_rank()
                    local = self._parameters[p.megatron_name].data if held else torch.empty(p.shape)
                    dist.broadcast(local, owner)
                    self._store_pieces(local, p)
            return
        for pair in zip(*self._peers, strict=True):
            local = self._parameters[pair[0].megatron_name].data
            # Both ranks hold the same values, so nothing has to be gathered.
            if pair[0].replicated_over_tp:
                self._store_pieces(local, pair[0])
                continue
            gathered = [torch.empty_like(local) for _ in pair]
            dist.all_gather(gathered, local)
            for tensor, p in zip(gathered, pair, strict=True):
                self._store_pieces(tensor, p)

    def _store_pieces(self, local: torch.Tensor, parameter) -> None:
        for piece in parameter.pieces:
            block = local.narrow(piece.dim, piece.local_start, piece.length)
            self._store(piece.hf_name, piece.dim, piece.hf_start, block)

    def _memcpy(self) -> None:
        for name, tensor in self._engine.items():
            shard = self._shards[name]
            tensor.copy_(self._read(name, shard.dim, shard.hf_start, shard.length))

    def _megatron(self) -> None:
        self._last_is_megatron = True
        assert self._target is not None
        swap_model_weights(self._source.module, self._target.module, self._service)

    def _megatron_target(self, folder: Path, platform: Platform, engine_tp: int) -> BuiltModel | None:
        topology: Topology = build_topology(platform, engine_tp, 1)
        target = build_model(folder, topology, load_weights=False)
        try:
            # A first sync also shows whether megatron-core can run this case at all.
            service = _CpuCopyService()
            swap_model_weights(self._source.module, target.module, service)
        except Exception as error:  # noqa: BLE001 - another project may raise anything
            self.without["megatron-core"] = repr(error)
            return None
        return target
