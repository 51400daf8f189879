"""Where the weights are (`TrainingLayout`) and where they go (`EngineLayout`). Stdlib only."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_prime.models.hf_mapping import ModelShape, NormStyle, ParameterPieces, parameters_of


@dataclass(frozen=True)
class TrainingLayout:
    """Parallel sizes of the Megatron job. Ranks are in Megatron's default order, tp-cp-ep-dp-pp, tp fastest.

    `layers_per_stage` gives the layers of each pipeline stage where they are not equal. Raises ValueError
    for sizes that are not positive, and for virtual pipelines and expert parallelism, which cannot be
    planned yet.
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
        for axis in ("vpp", "ep", "etp"):
            if getattr(self, axis) != 1:
                raise ValueError(
                    f"weight sync cannot be planned for {axis}={getattr(self, axis)} yet; only for 1"
                )
        if self.layers_per_stage is not None and len(self.layers_per_stage) != self.pp:
            raise ValueError(
                f"layers_per_stage has {len(self.layers_per_stage)} entries for {self.pp} pipeline stages"
            )

    @property
    def num_ranks(self) -> int:
        """World size of the training job."""
        return self.tp * self.cp * self.dp * self.pp

    def replicas(self, tp_rank: int, pp_rank: int) -> range:
        """Global ranks that hold the weights of a (tp, pp) coordinate: its data and context parallel ones."""
        num_replicas = self.cp * self.dp
        start = tp_rank + self.tp * num_replicas * pp_rank
        return range(start, start + self.tp * num_replicas, self.tp)

    def coordinates(self, rank: int) -> tuple[int, int]:
        """(tp_rank, pp_rank) of a global rank."""
        return rank % self.tp, rank // (self.tp * self.cp * self.dp)

    def stage_layers(self, num_layers: int) -> list[range]:
        """The HF layers of each pipeline stage. Raises ValueError when they do not come out even."""
        counts = self.layers_per_stage
        if counts is None:
            if num_layers % self.pp:
                raise ValueError(
                    f"{num_layers} layers cannot be split evenly over {self.pp} pipeline stages: choose"
                    " another pp or give layers_per_stage"
                )
            counts = (num_layers // self.pp,) * self.pp
        if sum(counts) != num_layers or min(counts) < 0:
            raise ValueError(f"layers_per_stage {counts} does not add up to the model's {num_layers} layers")
        starts = [sum(counts[:stage]) for stage in range(self.pp)]
        return [range(start, start + count) for start, count in zip(starts, counts, strict=True)]


@dataclass(frozen=True)
class EngineLayout:
    """Inference engines and the ranks they live on: `ranks[engine][engine_tp_rank]`.

    A rank below the training world size shares its device with that training rank; any other number is a
    device of its own. `vocab_divisor` is what the engine pads its vocabulary to (SGLang: 64).
    """

    num_engines: int
    tp: int
    ranks: tuple[tuple[int, ...], ...]
    vocab_divisor: int = 64

    def __post_init__(self) -> None:
        if self.num_engines < 1 or self.tp < 1:
            raise ValueError(f"{self.num_engines} engines of tp={self.tp}: both must be positive")
        if len(self.ranks) != self.num_engines or any(len(ranks) != self.tp for ranks in self.ranks):
            raise ValueError(
                f"ranks must give {self.tp} ranks for each of {self.num_engines} engines: {self.ranks}"
            )

    @classmethod
    def consecutive(
        cls, num_engines: int, tp: int, *, first_rank: int = 0, vocab_divisor: int = 64
    ) -> EngineLayout:
        """Engines side by side from `first_rank` on.

        0 shares the training devices; the training world size puts the engines beside them.
        """
        ranks = tuple(
            tuple(range(first_rank + engine * tp, first_rank + (engine + 1) * tp))
            for engine in range(num_engines)
        )
        return cls(num_engines, tp, ranks, vocab_divisor)


def local_parameters(
    shape: ModelShape, training: TrainingLayout, tp_rank: int, pp_rank: int, norm_style: NormStyle = "local"
) -> tuple[ParameterPieces, ...]:
    """The Megatron parameters at one (tp, pp) coordinate of the training job, as pieces of HF tensors."""
    return parameters_of(
        shape,
        tp_size=training.tp,
        tp_rank=tp_rank,
        layers=training.stage_layers(shape.num_layers)[pp_rank],
        is_first_stage=pp_rank == 0,
        is_last_stage=pp_rank == training.pp - 1,
        norm_style=norm_style,
    )
