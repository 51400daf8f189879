"""Export of a model that is distributed over ranks as an HF checkpoint: a weight sync whose target is a file."""

import shutil
from pathlib import Path

from megatron_prime.hf.checkpoint import HFCheckpointWriter, TensorSpec
from megatron_prime.hf.convert import HFBlock, assemble_hf
from megatron_prime.hf.mapping import hf_tensors
from megatron_prime.models.builder import BuiltModel
from megatron_prime.parallel.collectives import broadcast_object
from megatron_prime.parallel.topology import Topology
from megatron_prime.resharding.layouts import EngineLayout
from megatron_prime.resharding.transport import RankTransport, plan_for


def export_hf(
    built: BuiltModel, topology: Topology, source: Path, destination: Path, replace: bool = False
) -> None:
    """Write the weights of a model as an HF checkpoint. Collective over all ranks.

    Tensors are sent to rank 0 bucket by bucket, and `destination` appears only when it is complete.

    Args:
        built: the model.
        topology: layout of the ranks.
        source: HF folder whose config, tokenizer and generation config are copied.
        destination: folder to write.
        replace: replace an existing destination after the new one is written; otherwise it must not exist.

    Raises:
        OSError, ValueError: writing failed on rank 0; raised on every rank.
    """
    dtype = topology.platform.dtype
    parameters = built.named_parameters()
    plan = plan_for(built.shape, topology, EngineLayout(1, 1, ((0,),)), dtype)
    transport = RankTransport(plan, parameters, topology, dtype)
    # Every rank takes part in the sends of every bucket, but only rank 0 receives.
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
    """Receive all buckets on rank 0 and write them; an error is returned, to be broadcast to the other ranks."""
    deliveries = transport.deliver()
    expected = hf_tensors(built.shape)
    dtype = built.chunks[0].config.params_dtype
    specs = {name: TensorSpec(shape, dtype) for name, shape in expected.items()}
    blocks = (
        HFBlock(block.hf_name, block.dim, block.start, block.tensor.cpu())
        for bucket in deliveries
        for block in bucket
    )
    # A replaced destination stays usable until its successor is complete.
    new = destination.with_name(f".{destination.name}.new") if replace else destination
    try:
        if replace:
            shutil.rmtree(new, ignore_errors=True)
        with HFCheckpointWriter(new, specs, companions_from=source) as writer:
            for name, tensor in assemble_hf(expected, blocks):
                writer.write(name, tensor)
        if replace:
            _replace_folder(new, destination)
    except (OSError, ValueError) as error:
        # The other ranks are still sending: without a receiver they would wait until their deadline.
        for _ in deliveries:
            pass
        return error
    return None


def _replace_folder(new: Path, destination: Path) -> None:
    """Replace a folder by a complete one; a crash between the two renames leaves both on disk."""
    old = destination.with_name(f".{destination.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if destination.exists():
        destination.rename(old)
    new.rename(destination)
    shutil.rmtree(old, ignore_errors=True)
