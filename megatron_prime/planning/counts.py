"""Parameters of a model, whole and on a rank, and the work of a token. Exact: they come from the conversion table."""

import math
from dataclasses import dataclass
from functools import lru_cache

from megatron_prime.hf.mapping import ExpertShare, ModelShape, hf_tensors, parameters_of
from megatron_prime.resharding.layouts import TrainingLayout


@dataclass(frozen=True)
class Count:
    """Parameters of a rank: those that all data ranks share, and those of experts, which have replicas of their own."""

    dense: int
    expert: int = 0

    @property
    def total(self) -> int:
        """Both."""
        return self.dense + self.expert

    def __add__(self, other: "Count") -> "Count":
        return Count(self.dense + other.dense, self.expert + other.expert)

    def times(self, factor: int) -> "Count":
        """Of so many alike."""
        return Count(self.dense * factor, self.expert * factor)


@lru_cache(maxsize=256)
def num_parameters(shape: ModelShape) -> int:
    """Of the HF checkpoint: what a model is named after."""
    return sum(math.prod(dims) for dims in hf_tensors(shape).values())


@lru_cache(maxsize=256)
def num_active_parameters(shape: ModelShape) -> int:
    """Those that take part in one token: of the experts, only the chosen ones."""
    experts = sum(math.prod(dims) for name, dims in hf_tensors(shape).items() if ".experts." in name)
    if not experts:
        return num_parameters(shape)
    return num_parameters(shape) - experts + experts * shape.num_experts_per_tok // shape.num_experts


@lru_cache(maxsize=4096)
def rank_parameters(shape: ModelShape, layout: TrainingLayout, stage: int) -> Count:
    """Parameters of a rank of a pipeline stage, padding of the vocabulary included."""
    chunks = layout.stage_layers(shape.num_layers)[stage]
    layers = [layer for chunk in chunks for layer in chunk]
    num_moe = sum(shape.has_experts(layer) for layer in layers)
    total = _ends(shape, layout, stage == 0, stage == layout.pp - 1)
    for has_experts, number in ((True, num_moe), (False, len(layers) - num_moe)):
        if number:
            total += _layer(shape, layout.tp, layout.ep, layout.etp, has_experts).times(number)
    return total


@lru_cache(maxsize=4096)
def _layer(shape: ModelShape, tp: int, ep: int, etp: int, has_experts: bool) -> Count:
    layer = next(i for i in range(shape.num_layers) if shape.has_experts(i) == has_experts)
    return _count(shape, tp, ExpertShare(ep, 0, etp, 0), range(layer, layer + 1), False, False)


def _ends(shape: ModelShape, layout: TrainingLayout, is_first: bool, is_last: bool) -> Count:
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
    """FLOPs of a forward pass.

    2 for each weight of the matrices that a token meets, causal attention over sequences of `context` tokens
    (2 * context * query_size a token and layer), and the output layer for the scored tokens alone.
    """
    vocab = shape.vocab_size * shape.hidden_size
    met = num_active_parameters(shape) - vocab * (2 if shape.untied else 1)
    attention = 2 * context * shape.query_size * shape.num_layers
    return tokens * (2 * met + attention) + 2 * scored * vocab
