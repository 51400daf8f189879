"""Packed forward and backward passes through Megatron's pipeline schedule.

    rows of the batch --pack--> this data rank's microbatches --schedule--> log-probs and entropies in [B, T] again

Shape legend: B rows (responses) of the global batch, b rows of one microbatch, T response tokens, S packed tokens,
L of them on this context rank, R response tokens scored.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_prime.data.packed_sequences import PackedSequences, pack_sequences
from megatron_prime.data.packing import Padding, RowCosts, pack
from megatron_prime.models.gpt import ScoreRequest
from megatron_prime.observability.heartbeat import beat
from megatron_prime.parallel.collectives import sum_named_over_data_and_share, sum_over_data_and_share
from megatron_prime.parallel.context import local_tokens, sum_context
from megatron_prime.parallel.topology import Topology

Sequences = Sequence[tuple[Sequence[int], Sequence[int]]]
"""Prompt and response token ids of each row."""


@dataclass(frozen=True)
class Scores:
    """What a forward pass says of each response token; 0 on padding and on rows that were not scored."""

    logprobs_BT: torch.Tensor
    """float32, nats."""
    entropy_BT: torch.Tensor
    """float32, nats, of the whole next-token distribution."""


class RowLoss(Protocol):
    """A loss over some rows of the batch, as a sum: its weights were normalised over the whole minibatch before."""

    def __call__(
        self, rows_b: torch.Tensor, logprobs_bT: torch.Tensor, entropy_bT: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the scalar to differentiate, and metrics that add up over microbatches (the same names each time)."""
        ...


@dataclass(frozen=True)
class ScoringSettings:
    """How much of the work is done at a time, and at which temperature."""

    max_tokens_per_microbatch: int
    chunk_tokens: int
    temperature: float = 1.0


@dataclass(frozen=True)
class Microbatch:
    """One forward pass of this data rank."""

    rows_b: torch.Tensor
    packed: PackedSequences


def padding_of(topology: Topology) -> Padding:
    """What the layout asks of packed sequences."""
    sequences_to = 2 * topology.context_size if topology.context_size > 1 else 1
    return Padding(sequences_to, sequences_to * (topology.tensor_size if topology.sequence_parallel else 1))


def this_ranks_microbatches(
    sequences: Sequences, rows: Sequence[int], settings: ScoringSettings, costs: RowCosts, topology: Topology
) -> list[Microbatch]:
    """Pack some rows of the batch; the same arguments give the same packing for every model and on every rank."""
    padding = padding_of(topology)
    packing = pack(
        [len(sequences[row][0]) + len(sequences[row][1]) for row in rows],
        settings.max_tokens_per_microbatch,
        topology.data_size,
        [costs(len(sequences[row][0]) + len(sequences[row][1]), len(sequences[row][1])) for row in rows],
        padding,
    )
    return [
        Microbatch(
            rows_b=torch.tensor([rows[place] for place in places], dtype=torch.int64),
            packed=pack_sequences(
                [sequences[rows[place]] for place in places],
                pad_to=padding.microbatch_to,
                pad_sequences_to=padding.sequences_to,
            ),
        )
        for places in packing.rows[topology.data_rank]
    ]


class PackedPass:
    """Runs rows of a batch through one model, forward alone or with a loss.

    Args:
        model: this rank's ScoringGPTModel, or Megatron's DDP around it.
        topology: the layout.
        settings: packing and temperature.
        costs: of this model's rows.
    """

    def __init__(
        self, model: torch.nn.Module, topology: Topology, settings: ScoringSettings, costs: RowCosts
    ) -> None:
        self._model = model
        self._topology = topology
        self._settings = settings
        self._costs = costs

    @torch.no_grad()
    def score(self, sequences: Sequences, rows: Sequence[int] | None = None) -> Scores:
        """Log-probs and entropies of rows, the same on every rank. Collective over all ranks."""
        return self._run(sequences, rows, loss=None)[0]

    def backward(
        self, sequences: Sequences, rows: Sequence[int], loss: RowLoss
    ) -> tuple[Scores, dict[str, float]]:
        """Accumulate the loss's gradients, reduced over data ranks; return scores and metrics, equal on every rank.

        The scores are those of the weights before any update. Collective over all ranks.
        """
        return self._run(sequences, rows, loss)

    def _run(
        self, sequences: Sequences, rows: Sequence[int] | None, loss: RowLoss | None
    ) -> tuple[Scores, dict[str, float]]:
        rows = range(len(sequences)) if rows is None else rows
        microbatches = this_ranks_microbatches(sequences, rows, self._settings, self._costs, self._topology)
        num_columns = max(len(response) for _, response in sequences)
        sink = _Sink(len(sequences), num_columns, self._topology.platform.device)
        get_forward_backward_func()(
            forward_step_func=partial(self._forward_step, sink=sink, loss=loss),
            data_iterator=iter(microbatches),
            model=[self._model],
            num_microbatches=len(microbatches),
            seq_length=self._settings.max_tokens_per_microbatch,
            micro_batch_size=1,
            forward_only=loss is None,
        )
        return sink.share(self._topology)

    def _forward_step(
        self, microbatches: Iterator[Microbatch], model: torch.nn.Module, sink: "_Sink", loss: RowLoss | None
    ) -> tuple[torch.Tensor, Any]:
        microbatch = next(microbatches)
        beat("microbatch", is_common=False)  # data ranks may have other numbers of them
        packed = microbatch.packed.to(self._topology.platform.device)
        share = _Share.of(packed, self._topology)
        output = model(
            token_ids_S=packed.token_ids_S[share.tokens_L],
            position_ids_S=packed.position_ids_S[share.tokens_L],
            packed_seq_params=PackedSeqParams(
                qkv_format="thd",
                cu_seqlens_q=packed.cu_seqlens,
                cu_seqlens_kv=packed.cu_seqlens,
                max_seqlen_q=packed.max_seqlen,
                max_seqlen_kv=packed.max_seqlen,
            ),
            request=ScoreRequest(
                positions_R=share.positions_R,
                labels_R=packed.labels_S[packed.predict_positions_R][share.scored_R],
                temperature=self._settings.temperature,
                chunk_tokens=self._settings.chunk_tokens,
            ),
        )
        return output, partial(
            self._apply_loss, rows_b=microbatch.rows_b, packed=packed, share=share, sink=sink, loss=loss
        )

    def _apply_loss(
        self,
        output_2R: torch.Tensor,
        rows_b: torch.Tensor,
        packed: PackedSequences,
        share: "_Share",
        sink: "_Sink",
        loss: RowLoss | None,
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """What the schedule calls on the last stage: (scalar, token count, report)."""
        logprobs_bT = self._whole_rows(output_2R[0], packed, share, sink.num_columns)
        entropy_bT = self._whole_rows(output_2R[1], packed, share, sink.num_columns)
        sink.put(rows_b, logprobs_bT, entropy_bT)
        # A count of 0 tells Megatron's finalize_model_grads that the gradients are normalised already.
        no_tokens = torch.zeros((), dtype=torch.int, device=output_2R.device)
        if loss is None or not len(rows_b):
            return output_2R.sum() * 0.0, no_tokens, {}
        value, metrics = loss(rows_b.to(output_2R.device), logprobs_bT, entropy_bT)
        sink.add(metrics)
        return value, no_tokens, {}

    def _whole_rows(
        self, values_R: torch.Tensor, packed: PackedSequences, share: "_Share", num_columns: int
    ) -> torch.Tensor:
        """This rank's values and the other context ranks', as [b, T]."""
        own_bT = values_R.new_zeros(packed.num_sequences, num_columns).index_put(
            (packed.rows_R[share.scored_R], packed.cols_R[share.scored_R]), values_R
        )
        return sum_context(own_bT, self._topology.context_group)


@dataclass(frozen=True)
class _Share:
    """This context rank's part of a microbatch: L of its S tokens, and the R scored tokens that they predict."""

    tokens_L: torch.Tensor
    """int64 positions in S."""
    positions_R: torch.Tensor
    """int64 positions in L whose hidden states predict the scored tokens."""
    scored_R: torch.Tensor
    """int64 places in the microbatch's list of response tokens."""

    @staticmethod
    def of(packed: PackedSequences, topology: Topology) -> "_Share":
        """Everything, without context parallelism."""
        device = packed.token_ids_S.device
        if topology.context_size == 1:
            every_S = torch.arange(packed.num_tokens, device=device)
            every_R = torch.arange(packed.num_response_tokens, device=device)
            return _Share(every_S, packed.predict_positions_R, every_R)
        bounds = packed.cu_seqlens.tolist()
        tokens_L = local_tokens(bounds, topology.context_size, topology.context_rank).to(device)
        place_S = torch.full((packed.num_tokens,), -1, device=device)
        place_S[tokens_L] = torch.arange(len(tokens_L), device=device)
        positions = place_S[packed.predict_positions_R]
        scored_R = (positions >= 0).nonzero(as_tuple=True)[0]
        return _Share(tokens_L, positions[scored_R], scored_R)


class _Sink:
    """Collects one data rank's rows and metric sums, then shares them with all ranks."""

    def __init__(self, num_rows: int, num_columns: int, device: torch.device) -> None:
        self.num_columns = num_columns
        self._values_2BT = torch.zeros(2, num_rows, num_columns, device=device)
        self._metrics: dict[str, torch.Tensor] = {}

    def put(self, rows_b: torch.Tensor, logprobs_bT: torch.Tensor, entropy_bT: torch.Tensor) -> None:
        self._values_2BT[:, rows_b] = torch.stack([logprobs_bT.detach(), entropy_bT.detach()])

    def add(self, metrics: dict[str, torch.Tensor]) -> None:
        for name, value in metrics.items():
            self._metrics[name] = self._metrics.get(name, torch.zeros_like(value)) + value.detach()

    def share(self, topology: Topology) -> tuple[Scores, dict[str, float]]:
        sum_over_data_and_share([self._values_2BT], topology)
        metrics = sum_named_over_data_and_share(self._metrics, topology)
        return Scores(logprobs_BT=self._values_2BT[0], entropy_BT=self._values_2BT[1]), metrics
