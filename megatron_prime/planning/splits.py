"""Search for the best split of GPUs between training and servers that sample at the same time."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from megatron_prime.observability.progress import SILENT, Progress
from megatron_prime.planning.planned_run import PlannedRun
from megatron_prime.planning.search import Candidate, best_layouts

GIVE_UP_AFTER = 3
"""Number of splits in a row, slower than the best because too few GPUs train, after which no more are tried."""
MAX_SPLITS = 32
"""Largest number of splits that are tried."""


@dataclass(frozen=True)
class Split:
    """GPUs of training and servers."""

    candidate: Candidate
    """The run with its servers, in the fastest layout that fits."""

    @property
    def num_gpus(self) -> int:
        """Number of all GPUs."""
        return self.candidate.run.num_gpus


def best_splits(run: PlannedRun, max_results: int = 4, progress: Progress = SILENT) -> list[Split]:
    """Return the fastest ways to use the run's GPUs, fastest first; empty without SGLang servers.

    Besides every number of nodes (or servers, on a single node) that sample with GPUs of their own while the rest
    trains, all GPUs can do both in turn, with a server of the configured size on each `rollout.sglang.tensor` of them.
    """
    if not run.config.rollout.uses_servers:
        return []
    tried = [shared(run), *_dedicated(run)]
    found: list[Split] = []
    num_worse = 0
    with progress.phase("splits tried", len(tried)) as advance:
        for each in tried:
            found += [Split(candidate) for candidate in best_layouts(each, max_results=1)]
            advance(1)
            times = found[-1].candidate.times if found else None
            if times is None or times.seconds == min(split.candidate.times.seconds for split in found):
                num_worse = 0
            elif times.training_seconds > times.sampling_seconds and not found[-1].candidate.run.is_colocated:
                num_worse += 1
            # With ever fewer GPUs for training, which is what takes longest, nothing becomes faster.
            if num_worse == GIVE_UP_AFTER:
                break
    return sorted(found, key=lambda split: split.candidate.times.seconds)[:max_results]


def shared(run: PlannedRun) -> PlannedRun:
    """Return the run with servers on all GPUs, which are those of the training ranks."""
    per_node = min(run.num_gpus, run.gpu.gpus_per_node)
    servers = {
        "num_servers": max(1, per_node // run.config.rollout.sglang.tensor),
        "nodes": "all",
        "urls": (),
        "gpu_ids": (),
        "colocated": True,
    }
    return _with_servers(run, run.num_gpus, servers, max_staleness=0)


def dedicated(run: PlannedRun, num_servers: int) -> PlannedRun:
    """Return the run with some of its GPUs for servers that sample ahead: one step, or more if it is configured so."""
    # A run does not start servers on nodes without training ranks, but attaches to them.
    urls = tuple(f"http://server-{number}:30000" for number in range(num_servers))
    num_processes = run.num_gpus - num_servers * run.config.rollout.sglang.tensor
    servers = {"urls": urls, "gpu_ids": (), "colocated": False}
    return _with_servers(run, num_processes, servers, max(1, run.config.rollout.max_staleness))


def _dedicated(run: PlannedRun) -> Iterator[PlannedRun]:
    tensor, per_node = run.config.rollout.sglang.tensor, run.gpu.gpus_per_node
    # Nodes are given away as a whole, because servers and training compete for the cores and memory of a node.
    step = max(1, per_node // tensor) if run.num_gpus > per_node else 1
    step *= -(-run.num_gpus // (tensor * step * MAX_SPLITS))
    for num_servers in range(step, run.num_gpus // tensor + 1, step):
        if num_servers * tensor < run.num_gpus:
            yield dedicated(run, num_servers)


def _with_servers(
    run: PlannedRun, num_processes: int, servers: dict[str, object], max_staleness: int
) -> PlannedRun:
    rollout = run.config.rollout
    changed = rollout.model_copy(
        update={"sglang": rollout.sglang.model_copy(update=servers), "max_staleness": max_staleness}
    )
    # The search tries to offload everything; without servers on its GPUs, training may not have to.
    memory = run.config.memory
    if not servers["colocated"]:
        kept = {"offload_policy_optimizer": False, "offload_prm": False, "offload_reference": False}
        memory = memory.model_copy(update=kept)
    config = run.config.model_copy(update={"rollout": changed, "memory": memory})
    return replace(run, config=config, num_processes=num_processes)
