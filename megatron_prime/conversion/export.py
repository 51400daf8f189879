"""Writes a model as an HF checkpoint: a weight sync whose target is a file."""

import shutil
from pathlib import Path

from megatron_prime.hf.checkpoint import HFCheckpointWriter, TensorSpec
from megatron_prime.hf.convert import HFBlock, assemble_hf
from megatron_prime.hf.mapping import hf_tensors
from megatron_prime.models.builder import BuiltModel
from megatron_prime.parallel.collectives import broadcast_object
from megatron_prime.parallel.topology import Topology
from megatron_prime.resharding.layouts import EngineLayout
from megatron_prime.resharding.transport import RankTransport
from megatron_prime.resharding.weight_sync import plan_for


def export_hf(
    built: BuiltModel, topology: Topology, source: Path, destination: Path, replace: bool = False
) -> None:
    """Write the model's weights, with config, tokenizer and generation config of `source`, to `destination`.

    An existing destination is an error, or with `replace` gives way once the new one is written. Tensors stream to
    rank 0 a bucket at a time, and nothing appears at `destination` before it is complete. Collective over all ranks;
    a fault of rank 0's file system is raised on every rank, as OSError or ValueError.
    """
    dtype = topology.platform.dtype
    parameters = built.named_parameters()
    plan = plan_for(built.shape, topology, EngineLayout(1, 1, ((0,),)), dtype)
    transport = RankTransport(plan, parameters, topology, dtype)
    if topology.rank:
        for _ in transport.deliver():
            pass
        error = broadcast_object(None, topology)
    else:
        error = _write(built, transport, source, destination, replace)
        error = broadcast_object(error, topology)
    if error is not None:
        raise error


def _write(
    built: BuiltModel, transport: RankTransport, source: Path, destination: Path, replace: bool
) -> Exception | None:
    """Rank 0's part; a fault is returned, for the others to hear of, after every bucket has been received."""
    deliveries = transport.deliver()
    expected = hf_tensors(built.shape)
    dtype = built.chunks[0].config.params_dtype
    specs = {name: TensorSpec(shape, dtype) for name, shape in expected.items()}
    blocks = (
        HFBlock(block.hf_name, block.dim, block.start, block.tensor.cpu())
        for bucket in deliveries
        for block in bucket
    )
    new = destination.with_name(f".{destination.name}.new") if replace else destination
    try:
        if replace:
            shutil.rmtree(new, ignore_errors=True)
        with HFCheckpointWriter(new, specs, companions_from=source) as writer:
            for name, tensor in assemble_hf(expected, blocks):
                writer.write(name, tensor)
        if replace:
            _take_over(new, destination)
    except (OSError, ValueError) as error:
        for _ in deliveries:
            pass
        return error
    return None


def _take_over(new: Path, destination: Path) -> None:
    """Put a complete folder in the place of another; between the two renames, both are still on disk."""
    old = destination.with_name(f".{destination.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if destination.exists():
        destination.rename(old)
    new.rename(destination)
    shutil.rmtree(old, ignore_errors=True)
