"""Number of parameters of a model, in total and per rank, and FLOPs per token.

Parameters are counted exactly, from the table that also converts checkpoints.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

from megatron_prime.hf.mapping import ExpertShare, ModelShape, hf_tensors, parameters_of
from megatron_prime.hf.serving import num_parameters
from megatron_prime.resharding.layouts import TrainingLayout


@dataclass(frozen=True)
class Count:
    """Number of parameters per rank.

    Expert parameters are counted separately, because they have other data-parallel replicas than dense ones.
    """

    dense: int
    expert: int = 0

    @property
    def total(self) -> int:
        """Number of all parameters."""
        return self.dense + self.expert

    def __add__(self, other: "Count") -> "Count":
        return Count(self.dense + other.dense, self.expert + other.expert)

    def times(self, factor: int) -> "Count":
        """Return the count of `factor` equal parts."""
        return Count(self.dense * factor, self.expert * factor)


@lru_cache(maxsize=256)
def num_active_parameters(shape: ModelShape) -> int:
    """Return the number of parameters that a token uses: of the experts, only the chosen ones."""
    experts = sum(math.prod(dims) for name, dims in hf_tensors(shape).items() if ".experts." in name)
    if not experts:
        return num_parameters(shape)
    return num_parameters(shape) - experts + experts * shape.num_experts_per_tok // shape.num_experts


@lru_cache(maxsize=4096)
def rank_parameters(shape: ModelShape, layout: TrainingLayout, stage: int) -> Count:
    """Return the number of parameters per rank of a pipeline stage, including padding of the vocabulary."""
    chunks = layout.stage_layers(shape)[stage]
    layers = [layer for chunk in chunks for layer in chunk]
    num_moe = sum(shape.has_experts(layer) for layer in layers)
    # All layers with (or without) experts are equal, so one of each is counted and multiplied.
    total = _outside_layers(shape, layout, stage == 0, stage == layout.pp - 1)
    for has_experts, number in ((True, num_moe), (False, len(layers) - num_moe)):
        if number:
            total += _layer(shape, layout.tp, layout.ep, layout.etp, has_experts).times(number)
    return total


@lru_cache(maxsize=4096)
def _layer(shape: ModelShape, tp: int, ep: int, etp: int, has_experts: bool) -> Count:
    layer = next(i for i in range(shape.num_layers) if shape.has_experts(i) == has_experts)
    return _count(shape, tp, ExpertShare(ep, 0, etp, 0), range(layer, layer + 1), False, False)


def _outside_layers(shape: ModelShape, layout: TrainingLayout, is_first: bool, is_last: bool) -> Count:
    """Count the embedding of the first stage, and the final norm and output layer of the last."""
    return _count(shape, layout.tp, ExpertShare(), range(0, 0), is_first, is_last)


def _count(
    shape: ModelShape, tp: int, share: ExpertShare, layers: range, is_first: bool, is_last: bool
) -> Count:
    dense = expert = 0
    for parameter in parameters_of(
        shape,
        tp_size=tp,
        tp_rank=0,
        layers=layers,
        is_first_stage=is_first,
        is_last_stage=is_last,
        experts=share,
    ):
        size = math.prod(parameter.shape)
        if parameter.is_expert:
            expert += size
        else:
            dense += size
    return Count(dense, expert)


def forward_flops(shape: ModelShape, tokens: float, context: float, scored: float) -> float:
    """Return the FLOPs of a forward pass.

    They are 2 per token and weight that the token uses, 2 * context * query_size per token and layer for causal
    attention, and the output layer for the scored tokens only.

    Args:
        shape: The model.
        tokens: Number of tokens.
        context: Mean sequence length in tokens.
        scored: Number of tokens for which the output layer is computed.
    """
    return _layer_flops(shape, tokens, context) + _output_flops(shape, scored)


def imbalance(
    shape: ModelShape, layout: TrainingLayout, tokens: float, context: float, scored: float
) -> float:
    """Return the FLOPs of the most expensive chunk of a pipeline relative to the mean over the chunks, at least 1.

    That is the stage without virtual stages; with them, too, the most expensive chunk sets the pace of the others. The
    arguments are those of `forward_flops`. All layers count as the mean of them.
    """
    layers, output = _layer_flops(shape, tokens, context), _output_flops(shape, scored)
    stages = layout.stage_layers(shape)
    flops = [layers * len(chunk) / shape.num_layers for chunks in stages for chunk in chunks]
    flops[-1] += output  # the last chunk of the last stage
    return max(flops) * len(flops) / sum(flops)


def _layer_flops(shape: ModelShape, tokens: float, context: float) -> float:
    # The embedding is a lookup without products, and the output layer is counted for the scored tokens only.
    vocab = shape.vocab_size * shape.hidden_size
    weights = num_active_parameters(shape) - vocab * (2 if shape.untied else 1)
    return tokens * (2 * weights + 2 * context * shape.query_size * shape.num_layers)


def _output_flops(shape: ModelShape, scored: float) -> float:
    return 2 * scored * shape.vocab_size * shape.hidden_size
