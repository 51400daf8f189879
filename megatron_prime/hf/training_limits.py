"""Models and layouts that cannot be trained, although their config.json can be read. Standard library only.

`check` reports what this module finds before a job starts, and `models.builder` refuses the same when it starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from megatron_prime.config.tables.parallel import ParallelConfig
from megatron_prime.config.tables.performance.fp8 import Fp8Config
from megatron_prime.config.tables.performance.memory import RecomputeConfig
from megatron_prime.hf.shape import ModelShape
from megatron_prime.hf.stages import stage_faults, stage_layers


@dataclass(frozen=True)
class ModelSplit:
    """Sizes by which a model is split over processes, named as in the `[parallel]` table."""

    tensor: int = 1
    pipeline: int = 1
    virtual_pipeline: int = 1
    expert: int = 1
    expert_tensor: int = 1
    sequence_parallel: bool = False
    layers_per_stage: tuple[int, ...] | None = None
    """Layers of each chunk in model order; None chooses them by cost (see hf.stages)."""

    @staticmethod
    def of(parallel: ParallelConfig) -> ModelSplit:
        """Return the sizes of a `[parallel]` table."""
        return ModelSplit(
            tensor=parallel.tensor,
            pipeline=parallel.pipeline,
            virtual_pipeline=parallel.virtual_pipeline,
            expert=parallel.expert,
            expert_tensor=parallel.expert_tensor,
            sequence_parallel=parallel.sequence_parallel,
            layers_per_stage=parallel.layers_per_stage,
        )


def training_faults(shape: ModelShape, split: ModelSplit) -> Iterator[str]:
    """Yield each reason why a model of this shape cannot be trained in this layout."""
    yield from _model_faults(shape)
    yield from _divisibility_faults(shape, split)
    yield from stage_faults(shape, split.pipeline, split.virtual_pipeline, split.layers_per_stage)
    yield from _expert_faults(shape, split)


def fp8_faults(shape: ModelShape, fp8: Fp8Config, role: str) -> Iterator[str]:
    """Yield each reason why a role ("policy", "prm", "reference") of this shape cannot be trained with its recipe."""
    if fp8.recipe_of(role) == "delayed" and shape.is_moe:
        # megatron-core 0.16.1 splits the scales of grouped experts in another order than Transformer Engine keeps them.
        yield (
            f"fp8.{role} = 'delayed' cannot be combined with the experts of this {shape.family} model: a checkpoint "
            "would mix up their scales in another layout; set it to 'tensorwise' or 'blockwise'"
        )


def recompute_faults(shape: ModelShape, split: ModelSplit, recompute: RecomputeConfig) -> Iterator[str]:
    """Yield each reason why whole layers of a model of this shape cannot be recomputed as configured."""
    sizes = split.pipeline, split.virtual_pipeline, split.layers_per_stage
    if recompute.granularity != "full" or any(stage_faults(shape, *sizes)):
        return
    stages = [[len(chunk) for chunk in chunks] for chunks in stage_layers(shape, *sizes)]
    longest = max(sum(chunks) for chunks in stages)
    if recompute.num_layers > longest:
        yield (
            f"memory.recompute.num_layers = {recompute.num_layers} exceeds the {longest} layers of a pipeline stage"
        )
    elif recompute.method == "uniform":
        lengths = {length for chunks in stages for length in chunks}
        # Megatron would look for layers behind the last one.
        if any(length % recompute.num_layers for length in lengths):
            yield (
                f"memory.recompute.num_layers = {recompute.num_layers} does not divide the layers of each part of the "
                f"model, {', '.join(map(str, sorted(lengths)))}: choose a divisor, or method = 'block'"
            )


def check_training(shape: ModelShape, split: ModelSplit) -> None:
    """Raise ValueError with all reasons why a model of this shape cannot be trained in this layout."""
    faults = list(training_faults(shape, split))
    if faults:
        raise ValueError("\n".join(faults))


def _model_faults(shape: ModelShape) -> Iterator[str]:
    if shape.attention_out_bias or shape.mlp_bias:
        yield (
            f"this {shape.family} model has a bias in the attention output or the MLP (attention_bias or mlp_bias in "
            "its config.json), which is not supported yet"
        )
    # Megatron has no router of this kind (ADR 0012).
    if shape.is_moe and shape.num_experts_per_tok == 1 and shape.norm_topk_prob:
        yield (
            f"the {shape.family} model chooses one expert per token and normalizes its weight, which is then always 1 "
            "and gives the router no gradient (num_experts_per_tok, norm_topk_prob in its config.json): this is not "
            "supported"
        )


def _divisibility_faults(shape: ModelShape, split: ModelSplit) -> Iterator[str]:
    heads, kv_heads = shape.num_attention_heads, shape.num_query_groups
    if heads % split.tensor:
        yield f"parallel.tensor = {split.tensor} does not divide num_attention_heads = {heads}"
    if kv_heads % split.tensor:
        yield f"parallel.tensor = {split.tensor} does not divide num_key_value_heads = {kv_heads}"
    has_dense_mlp = not shape.is_moe or bool(shape.dense_layers)
    if has_dense_mlp and shape.ffn_hidden_size % split.tensor:
        yield f"parallel.tensor = {split.tensor} does not divide intermediate_size = {shape.ffn_hidden_size}"


def _expert_faults(shape: ModelShape, split: ModelSplit) -> Iterator[str]:
    if not shape.is_moe:
        if split.expert * split.expert_tensor > 1:
            yield (
                f"parallel.expert = {split.expert}, expert_tensor = {split.expert_tensor}: the model has no experts, "
                "set both to 1"
            )
        return
    if split.tensor > 1 and not split.sequence_parallel:
        yield (
            f"parallel.tensor = {split.tensor}: a mixture of experts needs parallel.sequence_parallel = true with it, "
            "because each tensor-parallel rank routes its own tokens"
        )
    if shape.num_experts % split.expert:
        yield f"parallel.expert = {split.expert} does not divide the number of experts = {shape.num_experts}"
    if shape.moe_ffn_hidden_size % split.expert_tensor:
        yield (
            f"parallel.expert_tensor = {split.expert_tensor} does not divide the experts' intermediate size = "
            f"{shape.moe_ffn_hidden_size}"
        )
    yield from _dense_stage_faults(shape, split)


def _dense_stage_faults(shape: ModelShape, split: ModelSplit) -> Iterator[str]:
    # Experts have an optimizer of their own, and a distributed checkpoint needs the same optimizers on every stage.
    sizes = split.pipeline, split.virtual_pipeline, split.layers_per_stage
    if any(stage_faults(shape, *sizes)):
        return
    for rank, chunks in enumerate(stage_layers(shape, *sizes)):
        if not any(shape.has_experts(layer) for chunk in chunks for layer in chunk):
            yield (
                f"pipeline stage {rank} would have no layer with experts, only dense ones of the {shape.family} model: "
                "choose a smaller parallel.pipeline or another parallel.stage_layers"
            )
