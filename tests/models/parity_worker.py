"""What one rank does in the layout tests: score and differentiate a fixed batch, and export gradients and weights."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_prime.config.schema import PolicyConfig
from megatron_prime.models.forward import ScoringSettings
from megatron_prime.models.hf_convert import export_local
from megatron_prime.parallel.platform import select_platform
from megatron_prime.parallel.topology import build_topology
from megatron_prime.training.trainable import Trainable

LAYOUTS = {
    # name: (processes, tensor, pipeline, sequence parallel, context)
    "one": (1, 1, 1, False, 1),
    "tp2": (2, 2, 1, False, 1),
    "tp2+sp": (2, 2, 1, True, 1),
    "pp2": (2, 1, 2, False, 1),
    "dp2": (2, 1, 1, False, 1),
    "tp4": (4, 4, 1, False, 1),
    "tp2 pp2": (4, 2, 2, False, 1),
    "tp2 dp2": (4, 2, 1, False, 1),
    "cp2": (2, 1, 1, False, 2),
    "tp2+sp cp2": (4, 2, 1, True, 2),
    "pp2 cp2": (4, 1, 2, False, 2),
    "cp2 dp2": (4, 1, 1, False, 2),
}


def topology_of(layout: str):
    _, tensor, pipeline, sequence_parallel, context = LAYOUTS[layout]
    platform = select_platform("cpu")
    platform.start_process_group()
    return build_topology(platform, tensor, pipeline, sequence_parallel, context=context)


def blocks_of(named: dict[str, torch.Tensor], parameters, topology) -> list[Any]:
    """HF blocks of this rank, replicas left out."""
    kept = [
        p
        for p in parameters
        if not p.is_tied_copy and (topology.tensor_rank == 0 or not p.replicated_over_tp)
    ]
    names = {p.megatron_name for p in kept}
    return [
        (block.hf_name, block.dim, block.hf_start, block.tensor.clone())
        for block in export_local({n: t for n, t in named.items() if n in names}, kept)
    ]


def score_and_differentiate(
    layout: str, model_dirs: list[str], sequences, weights_BT: torch.Tensor, max_tokens: int
):
    """For each model: scores, and blocks of weights and of the gradient of sum(w * (logprob + entropy / 10))."""
    topology = topology_of(layout)
    return [
        _one_model(Path(model_dir), topology, sequences, weights_BT, max_tokens) for model_dir in model_dirs
    ]


def _one_model(model_dir: Path, topology, sequences, weights_BT, max_tokens: int) -> dict[str, Any]:
    trainable = Trainable(
        "policy",
        model_dir,
        topology,
        ScoringSettings(max_tokens_per_microbatch=max_tokens, chunk_tokens=7),
        PolicyConfig(),
        num_steps=10,
    )
    scores = trainable.score(sequences)

    def loss(rows_b, logprobs_bT, entropy_bT):
        value = (weights_BT[rows_b] * (logprobs_bT + entropy_bT / 10)).sum()
        return value, {"value": value}

    trainable._ddp.zero_grad_buffer()
    again, metrics = trainable._pass.backward(sequences, range(len(sequences)), loss)
    _gather_gradient_shards(trainable._ddp, topology)
    named = dict(trainable.built.module.named_parameters())
    gradients = {name: parameter.main_grad for name, parameter in named.items()}
    return {
        "logprobs": scores.logprobs_BT,
        "entropy": scores.entropy_BT,
        "logprobs_in_backward": again.logprobs_BT,
        "value": metrics["value"],
        "weights": blocks_of(named, trainable.built.parameters, topology),
        "gradients": blocks_of(gradients, trainable.built.parameters, topology),
    }


def _gather_gradient_shards(ddp, topology) -> None:
    """Undo the distributed optimizer's reduce-scatter, so that whole gradients can be compared."""
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    for bucket in (bucket for buffer in ddp.buffers for bucket in buffer.buckets):
        shards = bucket.grad_data.chunk(group.size())
        gathered = [torch.empty_like(shard) for shard in shards]
        dist.all_gather(gathered, shards[group.rank()].clone(), group=group)
        bucket.grad_data.copy_(torch.cat(gathered))
