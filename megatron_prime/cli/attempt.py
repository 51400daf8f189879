"""One attempt of a run that can be resumed: its lock, its newest checkpoint, and what it was started with."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_prime.config.redaction import redact_all
from megatron_prime.config.run import PrimeConfig
from megatron_prime.observability import Progress
from megatron_prime.observability.durable import replace_file
from megatron_prime.observability.loggers.protocol import RunInfo
from megatron_prime.observability.provenance import save_provenance
from megatron_prime.parallel.topology import Topology
from megatron_prime.parallel.watchdog import stop_watchdog
from megatron_prime.preflight.resume import IDENTITY, has_identity, identity_of
from megatron_prime.training.checkpoint.run_lock import RunLock
from megatron_prime.training.checkpoint.store import CheckpointStore, RetentionPolicy
from megatron_prime.training.health.stop import stop_listening
from megatron_prime.training.loop import changed_settings, save_resolved_config


@contextmanager
def hold_run(config: PrimeConfig, topology: Topology) -> Iterator[RunLock]:
    """Hold the lock of run_dir inside the block; then stop the watchdog and the listener, and close the topology."""
    lock = RunLock(config.run_dir, topology)
    try:
        yield lock
    finally:
        lock.close()
        stop_watchdog()
        stop_listening()
    topology.close()


def open_store(
    config: PrimeConfig,
    folder: Path,
    retention: RetentionPolicy,
    topology: Topology,
    lock: RunLock,
    progress: Progress,
) -> tuple[CheckpointStore, Path | None]:
    """Return the store of folder/checkpoints, and its newest sound checkpoint; warn of settings that have changed."""
    settings = config.checkpoint
    store = CheckpointStore(
        folder / "checkpoints", topology, retention, settings.async_save, lock.attempt, lock.fence
    )
    checkpoint = store.newest_sound(settings.on_damage, warn=progress.warn)
    store.tidy()
    if topology.rank == 0 and checkpoint is not None:
        for change in changed_settings(config, folder):
            progress.warn(f"changed since this run was last started: {change}")
    return store, checkpoint


def record_start(config: PrimeConfig, folder: Path, command: str, attempt: int, is_first: bool) -> RunInfo:
    """Write what an attempt was started with, now that nothing refuses it any more. Call it on rank 0.

    Returns:
        What loggers show of the run whose metrics are in `folder`.
    """
    save_resolved_config(config, folder)
    provenance = save_provenance(config.run_dir, attempt)
    if is_first or not has_identity(folder):
        replace_file(folder / IDENTITY, json.dumps(identity_of(config, command), indent=1) + "\n")
    suffix = "" if command == "train" else f"-{command.replace('_', '-')}"
    return RunInfo(
        run_dir=folder,
        name=config.run_dir.absolute().name + suffix,
        project=config.logging.project,
        config=redact_all(config.model_dump(mode="json")),
        provenance=json.loads(provenance.read_text(encoding="utf-8")),
        benchmarks=tuple(config.evaluation.benchmarks),
        num_steps=config.stage(command).num_steps,
        command=command,
    )
