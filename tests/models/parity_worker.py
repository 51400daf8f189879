"""Functions that one rank runs in the layout tests: score a fixed batch, and export gradients and weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_prime.algorithm.prm_objectives.value import value_tokens
from megatron_prime.config.tables.policy import PolicyConfig
from megatron_prime.models.forward import PackedPass, ScoringSettings
from megatron_prime.training.trainable import RoleSpec, Trainable
from tests.parallel.pipeline_worker import counted_waits
from tests.support.layout_worker import blocks_of, topology_of
from tests.support.tiny_models import DEEP, DENSE_BUILDERS, MOE_BUILDERS, SCALED_BUILDERS, SHALLOW

DENSE_LAYOUTS = (
    "one",
    "tp2",
    "tp2+sp",
    "pp2",
    "pp2 vpp2",
    "dp2",
    "cp2",
    "tp4",
    "tp2 pp2",
    "tp2 dp2",
    "tp2+sp cp2",
    "tp2 pp2 vpp2",
    "pp2 cp2",
    "cp2 dp2",
)
MOE_LAYOUTS = (
    "one",
    "tp2+sp",
    "pp2",
    "pp2 vpp2",
    "dp2",
    "cp2",
    "ep2",
    "etp2",
    "tp2+sp ep2",
    "tp2+sp etp2",
    "cp2 ep2",
    "ep2 etp2",
    "ep2 dp2",
    "pp2 ep2",
    "pp2 vpp2 ep2",
    "tp2+sp ep2 etp2",
)
DEEP_LAYOUTS = ("pp2 uneven", "pp3", "pp2", "pp2 vpp2", "tp2 pp2 vpp2", "pp2 vpp2 ep2", "pp2 ep2", "pp4")
"""Layouts with models of four layers: four parts need them, some have several in a stage, and experts in each."""


def model_for(layout: str, name: str) -> str:
    """Return the name of the model to test in a layout: the one of two layers where that is enough."""
    return name if layout in DEEP_LAYOUTS else SHALLOW + name


UNEVEN_MODELS = ("qwen3 tied", "qwen3 moe mixed")
"""Models that are also tested with stages of unequal size, one of them with a layer without experts."""
CASES = [
    (layout, model_for(layout, name))
    for layouts, names in (
        (DENSE_LAYOUTS, DENSE_BUILDERS),
        (MOE_LAYOUTS, MOE_BUILDERS),
        (["pp4"], ["qwen3", "qwen3 moe"]),
        (["one", "tp2", "pp2", "cp2"], SCALED_BUILDERS),
        (["pp2 uneven", "pp3"], UNEVEN_MODELS),
    )
    for layout in layouts
    for name in names
] + [("pp2 vpp2 uneven", DEEP + name) for name in UNEVEN_MODELS]
"""(layout, model) pairs to test."""
PADDED = "qwen3"
"""The model that is also tested with the padding that FP8 needs."""


def score_and_differentiate(
    layouts: list[str], model_dirs: dict[str, str], sequences, weights_BT: torch.Tensor, max_tokens: int
):
    """Return (layout, model) -> scores, and blocks of weights and gradients of sum(w * (logprob + entropy / 10))."""
    report = {}
    for layout in layouts:
        topology = topology_of(layout)
        for name in (model for of_layout, model in CASES if of_layout == layout):
            report[layout, name] = _one_model(
                Path(model_dirs[name]), topology, sequences, weights_BT, max_tokens
            )
    return report


def replay(layouts, model_dirs, sequences, weights_BT, max_tokens, routing):
    """Run `score_and_differentiate` with experts to replay; `free` holds later log-probs without them."""
    report = {}
    for layout in layouts:
        topology = topology_of(layout)
        for name, folder in model_dirs.items():
            report[layout, name] = _one_model(folder, topology, sequences, weights_BT, max_tokens, routing)
    return report


def _one_model(
    model_dir: Path, topology, sequences, weights_BT, max_tokens: int, routing=None
) -> dict[str, Any]:
    settings = ScoringSettings(max_tokens_per_microbatch=max_tokens, chunk_tokens=7)
    trainable = Trainable(RoleSpec("policy", model_dir, settings), topology, PolicyConfig(), num_steps=10)
    with counted_waits() as in_scoring:
        scores = trainable.score(sequences, routing)

    def loss(rows_b, logprobs_bT, entropy_bT):
        value = (weights_BT[rows_b] * (logprobs_bT + entropy_bT / 10)).sum()
        return value, {"value": value}

    for chunk in trainable._ddp:
        chunk.zero_grad_buffer()
    with counted_waits() as in_backward:
        again, metrics = trainable._pass.backward(sequences, range(len(sequences)), loss, routing)
    _gather_gradient_shards(trainable._ddp)
    named = dict(trainable.built.module.named_parameters())
    gradients = {name: parameter.main_grad for name, parameter in named.items()}
    replayed = {}
    if routing is not None:
        replayed["free"] = trainable.score(sequences).logprobs_BT
        replayed["refused"] = _refused(
            lambda: trainable.score(
                sequences, [None if e is None else e[..., :1] for e in [None, *routing[1:]]]
            )
        )
    if model_dir.name.removeprefix(SHALLOW) == PADDED and routing is None:
        # Without Transformer Engine, Megatron ignores the recipe, so that only the padding for FP8 takes effect.
        config = trainable.built.chunks[0].config
        config.fp8, config.fp8_recipe = "hybrid", "tensorwise"
        replayed["padded"] = trainable.score(sequences).logprobs_BT
        config.fp8 = None
        critic = replace(settings, value_tokens=value_tokens(trainable.built.shape.vocab_size))
        values = PackedPass(trainable._pass._chunks, topology, critic, trainable._pass._costs).score(
            sequences
        )
        replayed |= {"values": values.logprobs_BT, "entropy of values": values.entropy_BT}
    return replayed | {
        "logprobs": scores.logprobs_BT,
        "entropy": scores.entropy_BT,
        "logprobs_in_backward": again.logprobs_BT,
        "value": metrics["value"],
        "exchanged shapes": in_scoring["shapes"] + in_backward["shapes"],
        "weights": blocks_of(named, trainable.built.parameters, topology),
        "gradients": blocks_of(gradients, trainable.built.parameters, topology),
    }


def _refused(action) -> str | None:
    try:
        action()
    except ValueError as error:
        return str(error)
    return None


def _gather_gradient_shards(chunks) -> None:
    """Undo the distributed optimizer's reduce-scatter, so that whole gradients can be compared."""
    dense = parallel_state.get_data_parallel_group(with_context_parallel=True)
    experts = parallel_state.get_expert_data_parallel_group()
    for chunk in chunks:
        for buffers, group in ((chunk.buffers, dense), (chunk.expert_parallel_buffers, experts)):
            for bucket in (bucket for buffer in buffers for bucket in buffer.buckets):
                shards = bucket.grad_data.chunk(group.size())
                gathered = [torch.empty_like(shard) for shard in shards]
                dist.all_gather(gathered, shards[group.rank()].clone(), group=group)
                bucket.grad_data.copy_(torch.cat(gathered))
