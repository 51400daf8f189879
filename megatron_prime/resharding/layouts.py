"""Where the weights are (`TrainingLayout`) and where they go (`EngineLayout`). Stdlib only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from megatron_prime.hf.mapping import (
    ExpertShare,
    ExpertStyle,
    ModelShape,
    NormStyle,
    ParameterPieces,
    parameters_of,
)


@dataclass(frozen=True)
class TrainingLayout:
    """Parallel sizes of the Megatron job, whose ranks are in Megatron's default order tp-cp-ep-dp-pp.

    Dense parameters: tp fastest, then cp, dp, pp. Experts divide the same ranks of a stage anew: etp fastest,
    then ep, then replicas; `etp` 1 keeps experts whole (Megatron's own default is tp). A stage of a virtual
    pipeline holds `vpp` chunks, and the chunks go round the stages. `layers_per_stage` gives the layers of
    each of the `pp * vpp` chunks, in model order, where they are not equal. Raises ValueError for sizes that
    are not positive or do not fit together.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    cp: int = 1
    vpp: int = 1
    ep: int = 1
    etp: int = 1
    layers_per_stage: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for axis in ("tp", "pp", "dp", "cp", "vpp", "ep", "etp"):
            if getattr(self, axis) < 1:
                raise ValueError(f"the training layout's {axis} must be positive, got {getattr(self, axis)}")
        if self.vpp > 1 and self.pp == 1:
            raise ValueError(f"vpp={self.vpp} needs a pipeline: pp is 1")
        if self.ranks_per_stage % (self.etp * self.ep):
            raise ValueError(
                f"etp={self.etp} times ep={self.ep} does not divide the {self.ranks_per_stage} ranks of a stage"
                f" (tp={self.tp} x cp={self.cp} x dp={self.dp})"
            )
        if self.layers_per_stage is not None and len(self.layers_per_stage) != self.pp * self.vpp:
            raise ValueError(
                f"layers_per_stage has {len(self.layers_per_stage)} entries for {self.pp} pipeline stages of"
                f" {self.vpp} chunks"
            )

    @property
    def ranks_per_stage(self) -> int:
        """Ranks of one pipeline stage: consecutive ones."""
        return self.tp * self.cp * self.dp

    @property
    def num_ranks(self) -> int:
        """World size of the training job."""
        return self.ranks_per_stage * self.pp

    def replicas(self, tp_rank: int, pp_rank: int) -> range:
        """Global ranks that hold a (tp, pp) coordinate's dense weights: its data and context parallel ones."""
        start = pp_rank * self.ranks_per_stage
        return range(start + tp_rank, start + self.ranks_per_stage, self.tp)

    def expert_replicas(self, etp_rank: int, ep_rank: int, pp_rank: int) -> range:
        """Global ranks that hold an (etp, ep, pp) coordinate's experts."""
        start = pp_rank * self.ranks_per_stage
        return range(start + etp_rank + self.etp * ep_rank, start + self.ranks_per_stage, self.etp * self.ep)

    def coordinates(self, rank: int) -> tuple[int, int]:
        """(tp_rank, pp_rank) of a global rank."""
        return rank % self.tp, rank // self.ranks_per_stage

    def expert_share(self, rank: int) -> ExpertShare:
        """What a global rank holds of its stage's experts."""
        return ExpertShare(self.ep, rank // self.etp % self.ep, self.etp, rank % self.etp)

    def stage_layers(self, num_layers: int) -> list[tuple[range, ...]]:
        """The HF layers of each pipeline stage's chunks. Raises ValueError when they do not come out even."""
        num_chunks = self.pp * self.vpp
        counts = self.layers_per_stage
        if counts is None:
            if num_layers % num_chunks:
                raise ValueError(
                    f"{num_layers} layers cannot be split evenly over {self.pp} pipeline stages of {self.vpp} chunks:"
                    " choose another pp or vpp, or give layers_per_stage"
                )
            counts = (num_layers // num_chunks,) * num_chunks
        if sum(counts) != num_layers or min(counts) < 0:
            raise ValueError(f"layers_per_stage {counts} does not add up to the model's {num_layers} layers")
        chunks = [range(end - count, end) for end, count in zip(accumulate(counts), counts, strict=True)]
        return [tuple(chunks[stage :: self.pp]) for stage in range(self.pp)]


@dataclass(frozen=True)
class EngineLayout:
    """Inference engines and the ranks they live on: `ranks[engine][engine_tp_rank]`.

    A rank below the training world size shares its device with that training rank; any other number is a
    device of its own. `vocab_divisor` is what the engine pads its vocabulary to (SGLang: 64). `ep` of its
    `tp` divide the experts, the other `tp // ep` split each. Replicas by data parallelism are further
    engines. Raises ValueError for sizes that do not fit together.
    """

    num_engines: int
    tp: int
    ranks: tuple[tuple[int, ...], ...]
    vocab_divisor: int = 64
    ep: int = 1

    def __post_init__(self) -> None:
        if self.num_engines < 1 or self.tp < 1 or self.ep < 1:
            raise ValueError(
                f"{self.num_engines} engines of tp={self.tp}, ep={self.ep}: all must be positive"
            )
        if self.tp % self.ep:
            raise ValueError(f"an engine's ep={self.ep} must divide its tp={self.tp}")
        if len(self.ranks) != self.num_engines or any(len(ranks) != self.tp for ranks in self.ranks):
            raise ValueError(
                f"ranks must give {self.tp} ranks for each of {self.num_engines} engines: {self.ranks}"
            )

    @property
    def expert_tp(self) -> int:
        """Ranks that split each expert."""
        return self.tp // self.ep

    @classmethod
    def consecutive(
        cls,
        num_engines: int,
        tp: int,
        *,
        ep: int = 1,
        dp: int = 1,
        first_rank: int = 0,
        vocab_divisor: int = 64,
    ) -> EngineLayout:
        """Engines of `dp` replicas each, side by side from `first_rank` on.

        0 shares the training devices; the training world size puts the engines beside them.
        """
        starts = range(first_rank, first_rank + num_engines * dp * tp, tp)
        return cls(num_engines * dp, tp, tuple(tuple(range(s, s + tp)) for s in starts), vocab_divisor, ep)

    @classmethod
    def beside(
        cls,
        num_engines: int,
        tp: int,
        num_local_ranks: int,
        *,
        ep: int = 1,
        gpus: Sequence[int] = (),
        first_ranks: Sequence[int] = (0,),
        vocab_divisor: int = 64,
    ) -> EngineLayout:
        """Engines on the nodes of training ranks, as many on each, every engine rank beside a training rank.

        A node has `num_local_ranks` training ranks from its first one on. `gpus` names the devices of a node's engine
        ranks, of which the training rank at place p has number p; without it they are 0, 1, .... Where there are
        more engine ranks than training ranks, as may be on a CPU, these are gone round.
        """
        places = gpus or range(num_engines // len(first_ranks) * tp)
        hosts = [first + place % num_local_ranks for first in first_ranks for place in places]
        ranks = tuple(tuple(hosts[start : start + tp]) for start in range(0, len(hosts), tp))
        return cls(num_engines, tp, ranks, vocab_divisor, ep)


def local_parameters(
    shape: ModelShape,
    training: TrainingLayout,
    rank: int,
    norm_style: NormStyle = "local",
    expert_style: ExpertStyle = "sequential",
) -> tuple[ParameterPieces, ...]:
    """The Megatron parameters of one rank of the training job, as pieces of HF tensors."""
    tp_rank, pp_rank = training.coordinates(rank)
    chunks = training.stage_layers(shape.num_layers)[pp_rank]
    return parameters_of(
        shape,
        tp_size=training.tp,
        tp_rank=tp_rank,
        layers=chunks if training.vpp > 1 else chunks[0],
        is_first_stage=pp_rank == 0,
        is_last_stage=pp_rank == training.pp - 1,
        norm_style=norm_style,
        experts=training.expert_share(rank),
        expert_style=expert_style,
    )
