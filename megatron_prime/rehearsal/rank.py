"""The rehearsal of one rank: the trainer's own code, from the build of the models to the end of a step."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.tables.performance.fp8 import Fp8Config
from megatron_prime.observability import heartbeat
from megatron_prime.parallel.pipeline_messages import connect_stages
from megatron_prime.parallel.topology import Topology
from megatron_prime.planning.planned_run import PlannedRun
from megatron_prime.rehearsal import world
from megatron_prime.rehearsal.batch import RehearsedBatches, rehearsed_batch
from megatron_prime.rehearsal.collectives import CollectiveRecord
from megatron_prime.rehearsal.engine import RehearsedEngine, RehearsedSync
from megatron_prime.rehearsal.ledger import Ledger, PhaseMemory
from megatron_prime.rehearsal.operations import PhaseCounts
from megatron_prime.training.prm_phase import PRMPhase
from megatron_prime.training.roles import Roles, build_roles
from megatron_prime.training.trainable import Scorer, Trainable
from megatron_prime.training.trainer import Trainer, TrainerContext


@dataclass
class RankReport:
    """The record of one rank."""

    rank: int
    where: dict[str, int]
    """Parallel axis -> the rank's coordinate on it."""
    memory: dict[str, PhaseMemory] = field(default_factory=dict)
    """Phase -> its peak."""
    counts: dict[str, PhaseCounts] = field(default_factory=dict)
    """Phase -> operations, FLOPs, waits and faults."""
    collectives: CollectiveRecord = field(default_factory=CollectiveRecord)
    sync: dict[str, int] = field(default_factory=dict)
    """See `RehearsedSync.facts`."""
    host_bytes: int = 0
    """Bytes of host memory for offloaded parts."""
    seconds: float = 0.0
    error: str = ""
    """Phase and message of the error that ended the rank, or nothing."""


def rehearsable(config: PrimeConfig) -> tuple[PrimeConfig, list[str]]:
    """Return the configuration as it can be rehearsed, and a note on each thing that is left out.

    Transformer Engine cannot run without a GPU: neither FP8 nor the overlap of tensor parallelism.
    """
    notes, changes = [], {}
    if any(config.fp8.recipe_of(role) != "none" for role in ("policy", "prm", "reference")):
        notes.append("FP8 layers exist in Transformer Engine alone: rehearsed in bf16, without their padding")
        changes["fp8"] = Fp8Config()
    if config.overlap.tensor_parallel:
        notes.append("overlap.tensor_parallel needs Transformer Engine: rehearsed without")
        changes["overlap"] = config.overlap.model_copy(update={"tensor_parallel": False})
    if config.platform.device != "cpu" and config.platform.layers != "torch":
        notes.append(
            "layers of Transformer Engine need a GPU: rehearsed are those of plain torch, with fused kernels"
        )
    return config.model_copy(update=changes), notes


def rehearse_rank(run: PlannedRun, rank: int, num_steps: int = 1) -> RankReport:
    """Run a rank's part of training steps in this process, which is of no other use afterwards.

    Errors of the run become part of the report.
    """
    started = time.monotonic()
    report = RankReport(rank, {})
    try:
        _rehearse(run, report, num_steps)
    except Exception as error:  # noqa: BLE001 - whatever the run raises is the finding
        phase = heartbeat.current().failed_phase or heartbeat.current().phase
        report.error = f"rank {rank}, phase {phase}: {type(error).__name__}: {error}"
    report.seconds = time.monotonic() - started
    return report


def _rehearse(run: PlannedRun, report: RankReport, num_steps: int) -> None:
    config, _ = rehearsable(run.config)
    stage = world.enter(config, report.rank, run.num_processes)
    topology, ledger = stage.topology, stage.ledger
    report.collectives, report.memory, report.counts = (
        stage.collectives,
        ledger.phases,
        stage.operations.phases,
    )
    report.where = {
        "tensor": topology.tensor_rank,
        "pipeline": topology.pipeline_rank,
        "context": topology.context_rank,
        "data": topology.data_rank,
        "expert": topology.expert_rank,
    }
    connect_stages(topology)
    report.sync = train_steps(replace(run, config=config), topology, ledger, num_steps)
    report.host_bytes = ledger.host_bytes


def train_steps(run: PlannedRun, topology: Topology, ledger: Ledger, num_steps: int) -> dict[str, int]:
    """Build the models of a run with weights of no meaning, and train them on made-up responses.

    The optimizers have their moments from the start, as they have in every step but the first.

    Args:
        run: the run, and the mean lengths of prompts and responses.
        topology: of the job, rehearsed or real.
        ledger: learns which memory belongs to which role.
        num_steps: number of steps of the trainer.

    Returns:
        The numbers of the weight sync's plan; see `RehearsedSync.facts`.
    """
    config = run.config
    # Moved from the CPU to a device without content, parameters would lose what Megatron has noted on them: torch makes
    # new ones, as it does not for a GPU. So they are made there.
    with torch.device(topology.platform.device), heartbeat.phase("build"):
        roles = build_roles(config, topology, load_weights=False, load_frozen_weights=False)
        for name, role in _named(roles).items():
            if isinstance(role, Trainable):
                with role.resident():
                    role.fill_moments()
            _own(ledger, name, role)
    engine = RehearsedEngine()
    sync = RehearsedSync(engine, run, roles.policy.built, topology.rank)
    lengths = run.assumptions.prompt_tokens, run.assumptions.response_tokens
    context = TrainerContext(
        engine=engine,
        batches=RehearsedBatches(rehearsed_batch(config, *lengths, policy_version=0)),
        policy=roles.policy,
        prm_phase=None if roles.prm is None else PRMPhase(roles.prm, config.prm, config.seed),
        reference=roles.reference,
        weight_sync=sync,
    )
    trainer = Trainer(config, context)
    for _ in range(num_steps):
        heartbeat.begin_step(trainer.step_index + 1)
        trainer.step()
    return sync.facts


def _named(roles: Roles) -> dict[str, Scorer]:
    named = {"policy": roles.policy, "prm": roles.prm, "reference": roles.reference}
    return {name: role for name, role in named.items() if role is not None}


def _own(ledger: Ledger, name: str, role: Scorer) -> None:
    """Count a role's parts as its own, and what its passes allocate as activations."""
    for part, tensors in role.residency.parts():
        ledger.assign(tensors, name, part)

    def owned(method: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:  # noqa: ANN401
            with ledger.owned(name, kind):
                return method(*args, **named)

        return call

    role.score = owned(role.score, "activations")  # type: ignore[method-assign]
    if isinstance(role, Trainable):
        role.update = owned(role.update, "activations")  # type: ignore[method-assign]
        role.optimizer.step = owned(role.optimizer.step, "optimizer")
