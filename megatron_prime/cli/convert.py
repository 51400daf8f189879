"""`megatron-prime convert`."""

from pathlib import Path

from megatron_prime.cli.assemble import start_topology
from megatron_prime.config.schema import PrimeConfig
from megatron_prime.models.builder import build_model
from megatron_prime.observability import Progress
from megatron_prime.training.checkpoint import CheckpointStore, Keeping, load_weights
from megatron_prime.training.export import export_hf


def convert(config: PrimeConfig, role: str, checkpoint: Path | None, output: Path) -> None:
    """Write a role of a training checkpoint as an HF checkpoint.

    Raises ValueError when there is no such checkpoint or role, when it is damaged, or when `output` exists.
    """
    topology = start_topology(config, data_parallel_only=True)
    store = CheckpointStore(config.run_dir / "checkpoints", Keeping(), topology)
    checkpoint = checkpoint or store.newest()
    if checkpoint is None:
        raise ValueError(f"{config.run_dir / 'checkpoints'} holds no complete checkpoint")
    faults = store.faults(checkpoint)
    if faults:
        raise ValueError(f"{checkpoint} is damaged: {'; '.join(faults[:5])}; name another with --checkpoint")
    source = (config.prm.path if role == "prm" else None) or config.model.path
    built = build_model(source, topology, load_weights=False)
    load_weights(built, checkpoint, role)
    export_hf(built, topology, source, output)
    Progress(enabled=topology.rank == 0).line(f"{role} of {checkpoint} written to {output}")
