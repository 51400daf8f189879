"""Parallel layouts of the weights in the training job and in the inference engines. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_prime.hf.mapping import (
    ExpertShare,
    ExpertStyle,
    ModelShape,
    NormStyle,
    ParameterPieces,
    parameters_of,
)
from megatron_prime.hf.stages import stage_layers


@dataclass(frozen=True)
class TrainingLayout:
    """Parallel sizes of a Megatron job, whose ranks are in Megatron's default order tp-cp-ep-dp-pp.

    For dense parameters tp varies fastest, then cp, dp and pp. For experts the ranks of a stage are divided again: etp
    varies fastest, then ep, then the replicas. With `etp` 1 experts are not split (Megatron's own default is tp).

    With the interleaved schedule each stage holds `vpp` chunks; chunk i of the model is on stage i % pp.

    Raises:
        ValueError: a size is not positive, or the sizes are inconsistent.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    cp: int = 1
    vpp: int = 1
    ep: int = 1
    etp: int = 1
    layers_per_stage: tuple[int, ...] | None = None
    """Number of layers of each of the pp * vpp chunks, in model order; None chooses them by cost (see hf.stages)."""

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
        """Number of ranks in a pipeline stage; they are consecutive."""
        return self.tp * self.cp * self.dp

    @property
    def num_ranks(self) -> int:
        """World size of the training job."""
        return self.ranks_per_stage * self.pp

    def replicas(self, tp_rank: int, pp_rank: int) -> range:
        """Return the global ranks that hold the dense weights of a (tp, pp) coordinate: its dp and cp replicas."""
        # tp varies fastest, so ranks with the same tp_rank are tp apart.
        start = pp_rank * self.ranks_per_stage
        return range(start + tp_rank, start + self.ranks_per_stage, self.tp)

    def expert_replicas(self, etp_rank: int, ep_rank: int, pp_rank: int) -> range:
        """Return the global ranks that hold the experts of an (etp, ep, pp) coordinate."""
        # Within a stage, etp varies fastest, then ep: replicas are etp * ep apart.
        start = pp_rank * self.ranks_per_stage
        return range(start + etp_rank + self.etp * ep_rank, start + self.ranks_per_stage, self.etp * self.ep)

    def coordinates(self, rank: int) -> tuple[int, int]:
        """Return the (tp_rank, pp_rank) of a global rank."""
        return rank % self.tp, rank // self.ranks_per_stage

    def expert_share(self, rank: int) -> ExpertShare:
        """Return the share of its stage's experts that a global rank holds."""
        # The ranks of a stage are a multiple of etp * ep, so the global rank gives the same result as the rank in the
        # stage.
        return ExpertShare(self.ep, rank // self.etp % self.ep, self.etp, rank % self.etp)

    def stage_layers(self, shape: ModelShape) -> list[tuple[range, ...]]:
        """Return the HF layers of each chunk of each pipeline stage.

        Raises:
            ValueError: there are fewer layers than chunks, or layers_per_stage does not add up to the model's layers.
        """
        return stage_layers(shape, self.pp, self.vpp, self.layers_per_stage)


@dataclass(frozen=True)
class EngineLayout:
    """Tensor parallel inference engines and their ranks. Data parallel replicas count as separate engines.

    Raises:
        ValueError: the sizes are inconsistent.
    """

    num_engines: int
    tp: int
    ranks: tuple[tuple[int, ...], ...]
    """ranks[engine][engine_tp_rank]. A rank below the training world size shares its device with that training rank;
    any other number stands for a separate device."""
    vocab_divisor: int = 64
    """Multiple to which the engine pads its vocabulary (SGLang: 64)."""
    ep: int = 1
    """Expert parallel size within an engine; each expert is split over tp // ep ranks."""

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
        """Number of ranks over which each expert is split."""
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
        """Return engines of `dp` replicas each on consecutive ranks from `first_rank` on.

        A `first_rank` of 0 shares the devices of the training job; the training world size uses separate devices.
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
        """Return engines colocated with training ranks, the same number on each node.

        Args:
            num_engines: number of engines on all nodes together.
            tp: ranks of an engine.
            num_local_ranks: training ranks per node.
            ep: expert parallel size within an engine.
            gpus: local training rank whose device each engine rank of a node shares; default 0, 1, .... If a node has
                more engine ranks than training ranks, as is possible on a CPU, they wrap around.
            first_ranks: global rank of the first training rank on each node with engines.
            vocab_divisor: multiple to which the engine pads its vocabulary.
        """
        local_ranks = gpus or range(num_engines // len(first_ranks) * tp)
        hosts = [first + local_rank % num_local_ranks for first in first_ranks for local_rank in local_ranks]
        # Engines do not span nodes, because each node has the same number of whole engines.
        ranks = tuple(tuple(hosts[start : start + tp]) for start in range(0, len(hosts), tp))
        return cls(num_engines, tp, ranks, vocab_divisor, ep)


def local_parameters(
    shape: ModelShape,
    training: TrainingLayout,
    rank: int,
    norm_style: NormStyle = "local",
    expert_style: ExpertStyle = "sequential",
) -> tuple[ParameterPieces, ...]:
    """Return the Megatron parameters of one training rank, as pieces of HF tensors."""
    tp_rank, pp_rank = training.coordinates(rank)
    chunks = training.stage_layers(shape)[pp_rank]
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
