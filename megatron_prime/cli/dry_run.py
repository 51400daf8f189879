"""`--dry-run` of `train` and `train-prm`: print what would run where. Nothing is started, and torch is not imported."""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_prime.config.arithmetic import BatchArithmetic
from megatron_prime.config.redaction import redact_all
from megatron_prime.config.run import PrimeConfig
from megatron_prime.engines.sglang.launch import LaunchPlan
from megatron_prime.hf.shape import read_shape
from megatron_prime.observability.durable import replace_file
from megatron_prime.preflight.prm_training import offline_lines
from megatron_prime.resharding.layouts import TrainingLayout

RANKS_PER_NODE = 8
"""GPUs, and so ranks, that a node is assumed to have."""


def dry_run(
    config: PrimeConfig,
    arithmetic: BatchArithmetic,
    file: Path,
    overrides: list[str],
    output: Path | None,
    command: str = "train",
    ranks_per_node: int = RANKS_PER_NODE,
) -> list[str]:
    """Return the arithmetic, the process map and the commands of `train` or `train-prm` as lines.

    If `output` is a folder, they are also written there (arithmetic.txt, processes.txt, commands.sh), with the resolved
    configuration (config.json).
    """
    is_train = command == "train"
    model = config.model.path if is_train else config.prm_path
    words, num_processes = [command, str(file), *overrides], arithmetic.num_processes
    processes = list(process_map(config, model, num_processes, ranks_per_node))
    started = list(commands(words, num_processes, ranks_per_node))
    if is_train:
        processes += server_map(config)
        started += server_commands(config)
    parts = {
        "arithmetic.txt": [*arithmetic.lines(), *config.notes()]
        if is_train
        else offline_lines(config, arithmetic),
        "processes.txt": processes,
        "commands.sh": started,
    }
    parts = redact_all(parts)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        replace_file(output / "config.json", json.dumps(config.model_dump(mode="json"), indent=2) + "\n")
        for name, lines in parts.items():
            replace_file(output / name, "\n".join(lines) + "\n")
    return [line for lines in parts.values() for line in ("", *lines)]


def process_map(config: PrimeConfig, model: Path, num_processes: int, ranks_per_node: int) -> Iterator[str]:
    """Yield a line per rank with node, coordinates, expert rank and the layers of a model."""
    parallel = config.parallel
    layout = TrainingLayout(
        tp=parallel.tensor,
        pp=parallel.pipeline,
        cp=parallel.context,
        dp=num_processes // parallel.model_size,
        vpp=parallel.virtual_pipeline,
        ep=parallel.expert,
        etp=parallel.expert_tensor,
        layers_per_stage=parallel.layers_per_stage,
    )
    stages = layout.stage_layers(read_shape(model))
    yield "rank  node  local  pipeline  data  context  tensor  expert  layers"
    for rank in range(num_processes):
        tensor, pipeline = layout.coordinates(rank)
        within = rank % layout.ranks_per_stage
        context, data = within // layout.tp % layout.cp, within // (layout.tp * layout.cp)
        expert = layout.expert_share(rank).ep_rank if layout.ep > 1 else "-"
        layers = " ".join(f"{chunk.start}-{chunk.stop - 1}" for chunk in stages[pipeline])
        yield (
            f"{rank:<6}{rank // ranks_per_node:<6}{rank % ranks_per_node:<7}{pipeline:<10}{data:<6}{context:<9}"
            f"{tensor:<8}{expert:<8}{layers}"
        )


def server_map(config: PrimeConfig) -> Iterator[str]:
    """Yield a line per rollout server."""
    settings = config.rollout.sglang
    yield from (f"server {url}, attached" for url in config.rollout.attached_urls)
    if config.rollout.starts_servers:
        for server in range(settings.num_servers):
            gpus = settings.server_gpus(server)
            where = "the node of rank 0" if settings.nodes == "first" else "each node"
            yield f"server {server} on {where}, GPUs {' '.join(map(str, gpus))}"


def commands(words: Sequence[str], num_processes: int, ranks_per_node: int) -> Iterator[str]:
    """Yield the commands that start `megatron_prime WORDS` on all ranks."""
    program = ["megatron_prime", *words]
    nodes = -(-num_processes // ranks_per_node)
    if nodes == 1:
        yield "# the ranks, all on this machine"
        yield shlex.join([sys.executable, "-m", *program])
    else:
        yield f"# on each of {nodes} nodes; $MASTER is the first one's name (under Slurm: examples/prime_70b.sh)"
        options = [f"--nnodes={nodes}", f"--nproc-per-node={ranks_per_node}", "--rdzv-backend=c10d"]
        yield (
            shlex.join(["torchrun", *options])
            + " --rdzv-endpoint=$MASTER:29500 "
            + shlex.join(["-m", *program])
        )


def server_commands(config: PrimeConfig) -> Iterator[str]:
    """Yield the commands of the servers that a run of `train` starts."""
    settings = config.rollout.sglang
    if not config.rollout.starts_servers:
        return
    device = "cpu" if config.platform.device == "cpu" else "cuda"
    plan = LaunchPlan(config.model.path, device, config.platform.dtype, config.seed, settings)
    supervisor = "rank 0" if settings.nodes == "first" else "the first rank of each node"
    yield f"# started and supervised by {supervisor}; PORT is a free one"
    for server in range(settings.num_servers):
        yield shlex.join(plan.command(server, 0)).replace("--port 0", "--port PORT")
