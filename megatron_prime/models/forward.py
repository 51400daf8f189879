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
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import get_model_config

from megatron_prime.logprobs.output_layer import LogprobKernel
from megatron_prime.models.experts import (
    RoutedSeqParams,
    TokenRouting,
    check_routing,
    drop_router_outputs,
    replay_tensor,
)
from megatron_prime.models.gpt import ScoreRequest
from megatron_prime.models.packed_sequences import PackedSequences, pack_sequences
from megatron_prime.models.packing import Padding, RowCosts, pack
from megatron_prime.models.te_layers import FP8_TOKENS, start_overlap_buffers
from megatron_prime.observability.heartbeat import beat
from megatron_prime.parallel.collectives import sum_named_over_data_and_share, sum_over_data_and_share
from megatron_prime.parallel.context import local_tokens, sum_context
from megatron_prime.parallel.pipeline_messages import PipelineMessages
from megatron_prime.parallel.platform import move_together
from megatron_prime.parallel.topology import Topology

Sequences = Sequence[tuple[Sequence[int], Sequence[int]]]
"""Prompt and response token ids of each row."""
Routing = Sequence[torch.Tensor | None]
"""Experts to replay for each row, in the form of `Rollout.routed_experts`; None lets the router choose."""


@dataclass(frozen=True)
class Scores:
    """Values of a forward pass per response token; 0 on padding and on rows that were not scored."""

    logprobs_BT: torch.Tensor
    """float32, nats."""
    entropy_BT: torch.Tensor
    """float32, nats, of the whole next-token distribution."""


class RowLoss(Protocol):
    """A loss over some rows of the batch. It is a sum: its weights are already normalized over the whole minibatch."""

    def __call__(
        self, rows_b: torch.Tensor, logprobs_bT: torch.Tensor, entropy_bT: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the scalar to differentiate, and metrics that add up over microbatches (the same names each time)."""
        ...


@dataclass(frozen=True)
class ScoringSettings:
    """Sizes of microbatches and output tiles, the kernel of the output layer, and the temperature."""

    max_tokens_per_microbatch: int
    chunk_tokens: int
    temperature: float = 1.0
    kernel: LogprobKernel = "auto"
    """Kernel of the output layer; see `logprobs.output_layer`."""
    value_tokens: tuple[int, int] | None = None
    """Two token ids. The scores are then those of a critic: before each response token, log p(first) - log p(second),
    the difference of their logits, instead of the log-prob of the token itself. It costs the output layer twice."""


@dataclass(frozen=True)
class Microbatch:
    """The input of one forward pass on this data-parallel rank."""

    rows_b: torch.Tensor
    lengths_b: torch.Tensor
    """int64: number of tokens of each sequence, prompt and response."""
    packed: PackedSequences
    routing: list[torch.Tensor | None] | None = None
    """Experts to replay for each sequence; None replays none."""


def padding_of(topology: Topology, config: TransformerConfig | None = None, max_tokens: int = 1) -> Padding:
    """Return the padding that the layout, FP8 and overlapped tensor parallelism require of packed sequences."""
    sequences_to = 2 * topology.context_size if topology.context_size > 1 else 1
    microbatch_to = sequences_to * (topology.tensor_size if topology.sequence_parallel else 1)
    if config is not None and config.fp8:
        microbatch_to *= FP8_TOKENS[config.fp8_recipe or "delayed"]
    if config is not None and config.tp_comm_overlap:
        # A microbatch holds at most max_tokens, so padding to a multiple of that makes all of them equally long.
        microbatch_to *= -(-max_tokens // microbatch_to)
    return Padding(sequences_to, microbatch_to)


def this_ranks_microbatches(
    sequences: Sequences,
    rows: Sequence[int],
    settings: ScoringSettings,
    costs: RowCosts,
    topology: Topology,
    routing: Routing | None = None,
    config: TransformerConfig | None = None,
) -> list[Microbatch]:
    """Pack rows of the batch. The same arguments give the same packing for every model and on every rank."""
    padding = padding_of(topology, config, settings.max_tokens_per_microbatch)
    # Prompt and response tokens of each row.
    sizes = [
        (len(prompt_ids), len(response_ids)) for prompt_ids, response_ids in map(sequences.__getitem__, rows)
    ]
    lengths = [num_prompt + num_response for num_prompt, num_response in sizes]
    packing = pack(
        lengths,
        settings.max_tokens_per_microbatch,
        topology.data_size,
        [costs(length, num_response) for length, (_, num_response) in zip(lengths, sizes, strict=True)],
        padding,
    )
    # The interleaved schedule processes microbatches in groups of the pipeline size, so their number is a multiple.
    num_empty = -packing.num_microbatches % topology.pipeline_size if topology.virtual_size > 1 else 0
    return [
        Microbatch(
            rows_b=torch.tensor([rows[place] for place in places], dtype=torch.int64),
            lengths_b=torch.tensor([lengths[place] for place in places], dtype=torch.int64),
            packed=pack_sequences(
                [sequences[rows[place]] for place in places],
                pad_to=padding.microbatch_to,
                pad_sequences_to=padding.sequences_to,
            ),
            routing=None if routing is None else [routing[rows[place]] for place in places],
        )
        for places in (*packing.rows[topology.data_rank], *[()] * num_empty)
    ]


class PackedPass:
    """Runs rows of a batch through one model, forward only or with a loss.

    Args:
        chunks: this rank's ScoringGPTModels, or Megatron's DDP around each: one, or one a virtual pipeline stage.
        topology: the layout.
        settings: packing and temperature.
        costs: of this model's rows.
        load_balance_coef: weight of the load-balancing loss of experts in `backward`, a mean over sequences (see
            models.experts.PackedRouter).
    """

    def __init__(
        self,
        chunks: Sequence[torch.nn.Module],
        topology: Topology,
        settings: ScoringSettings,
        costs: RowCosts,
        load_balance_coef: float = 0.0,
    ) -> None:
        self._chunks = list(chunks)
        self._load_balance_coef = load_balance_coef
        self._topology = topology
        self._settings = settings
        self._costs = costs
        config = get_model_config(self._chunks[0])
        if config.tp_comm_overlap:
            padding = padding_of(topology, config, settings.max_tokens_per_microbatch)
            num_tokens = padding.microbatch(settings.max_tokens_per_microbatch) // topology.context_size
            start_overlap_buffers(num_tokens, config.hidden_size, topology, has_fp8=bool(config.fp8))

    @torch.no_grad()
    def score(
        self, sequences: Sequences, rows: Sequence[int] | None = None, routing: Routing | None = None
    ) -> Scores:
        """Return log-probs and entropies of rows, equal on every rank. Collective over all ranks.

        With `routing`, tokens go to the experts that it names; raises ValueError when it does not fit the model.
        """
        scores, _ = self._run(sequences, rows, None, routing, keeps_scores=True)
        assert scores is not None
        return scores

    def backward(
        self,
        sequences: Sequences,
        rows: Sequence[int],
        loss: RowLoss,
        routing: Routing | None = None,
        *,
        keeps_scores: bool = True,
    ) -> tuple[Scores | None, dict[str, float]]:
        """Accumulate the loss's gradients, reduced over data ranks; return scores and metrics, equal on every rank.

        The scores are those of the weights before any update; None without `keeps_scores`, which saves two tensors of
        the batch and their exchange between all ranks. Collective over all ranks.
        """
        return self._run(sequences, rows, loss, routing, keeps_scores)

    def _run(
        self,
        sequences: Sequences,
        rows: Sequence[int] | None,
        loss: RowLoss | None,
        routing: Routing | None,
        keeps_scores: bool,
    ) -> tuple[Scores | None, dict[str, float]]:
        rows = range(len(sequences)) if rows is None else rows
        if routing is not None:
            check_routing(routing, sequences, get_model_config(self._chunks[0]))
        microbatches = this_ranks_microbatches(
            sequences,
            rows,
            self._settings,
            self._costs,
            self._topology,
            routing,
            get_model_config(self._chunks[0]),
        )
        num_columns = max(len(response) for _, response in sequences)
        sink = _Sink(len(sequences), num_columns, self._topology.platform.device, keeps_scores)
        balance_weight = self._load_balance_coef / len(rows) if loss is not None and len(rows) else 0.0
        iterators = [iter(microbatches) for _ in self._chunks]
        get_forward_backward_func()(
            forward_step_func=partial(
                self._forward_step, sink=sink, loss=loss, balance_weight=balance_weight
            ),
            data_iterator=iterators if len(iterators) > 1 else iterators[0],
            model=self._chunks,
            num_microbatches=len(microbatches),
            seq_length=self._settings.max_tokens_per_microbatch,
            micro_batch_size=1,
            forward_only=loss is None,
            **self._communication(microbatches),
        )
        if loss is not None:
            drop_router_outputs(self._chunks)
        return sink.share(self._topology)

    def _communication(self, microbatches: Sequence[Microbatch]) -> dict[str, Any]:
        """Return the schedule's arguments for messages between stages, which it takes with all groups or not at all."""
        if self._topology.pipeline_size == 1:
            return {}
        lengths = [microbatch.packed.num_tokens for microbatch in microbatches]
        config = get_model_config(self._chunks[0])
        return {
            "p2p_communicator": PipelineMessages(self._topology, config, lengths),
            "pg_collection": self._topology.process_groups,
        }

    def _forward_step(
        self,
        microbatches: Iterator[Microbatch],
        model: torch.nn.Module,
        sink: "_Sink",
        loss: RowLoss | None,
        balance_weight: float,
    ) -> tuple[torch.Tensor, Any]:
        microbatch = next(microbatches)
        beat("microbatch", is_common=False)  # data-parallel ranks may differ in their numbers of microbatches
        device = self._topology.platform.device
        share = _Share.of(microbatch.packed, self._topology)
        routing = self._token_routing(microbatch, share, balance_weight)
        # What is computed from the packing is computed on the host: reading it from a GPU would wait for the GPU.
        packed = microbatch.packed.to(device)
        is_plain = self._topology.platform.layers == "torch"
        # Layers of plain torch read the bounds of sequences on the host, and Transformer Engine's on the device.
        bounds = microbatch.packed.cu_seqlens if is_plain else packed.cu_seqlens
        share, (rows_b,) = share.to(device), move_together([microbatch.rows_b], device)
        positions_R, labels_R = share.positions_R, packed.labels_S[packed.predict_positions_R][share.scored_R]
        if self._settings.value_tokens is not None:
            labels_R = torch.cat([torch.full_like(labels_R, token) for token in self._settings.value_tokens])
            positions_R = positions_R.repeat(2)
        output = model(
            token_ids_S=packed.token_ids_S[share.tokens_L],
            position_ids_S=packed.position_ids_S[share.tokens_L],
            packed_seq_params=RoutedSeqParams(
                qkv_format="thd",
                cu_seqlens_q=bounds,
                cu_seqlens_kv=bounds,
                max_seqlen_q=packed.max_seqlen,
                max_seqlen_kv=packed.max_seqlen,
                routing=None if routing is None else routing.to(device),
            ),
            request=ScoreRequest(
                positions_R=positions_R,
                labels_R=labels_R,
                temperature=self._settings.temperature,
                chunk_tokens=self._settings.chunk_tokens,
                kernel=self._settings.kernel,
            ),
        )
        return output, partial(
            self._apply_loss, rows_b=rows_b, packed=packed, share=share, sink=sink, loss=loss
        )

    def _token_routing(
        self, microbatch: Microbatch, share: "_Share", balance_weight: float
    ) -> TokenRouting | None:
        """Return the routing of the tokens of this context-parallel rank; None if routers need no information."""
        if not balance_weight and microbatch.routing is None:
            return None
        packed = microbatch.packed
        starts, lengths = packed.cu_seqlens.tolist(), microbatch.lengths_b.tolist()
        sequences_S = torch.full((packed.num_tokens,), -1)
        for sequence, (start, length) in enumerate(zip(starts, lengths, strict=False)):
            sequences_S[start : start + length] = sequence
        replay = None
        if microbatch.routing is not None:
            config = get_model_config(self._chunks[0])
            replay = replay_tensor(microbatch.routing, starts, packed.num_tokens, config)
            replay = replay[:, share.tokens_L]
        return TokenRouting(sequences_S[share.tokens_L], microbatch.lengths_b, balance_weight, replay)

    def _apply_loss(
        self,
        output_2R: torch.Tensor,
        rows_b: torch.Tensor,
        packed: PackedSequences,
        share: "_Share",
        sink: "_Sink",
        loss: RowLoss | None,
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Return (scalar to differentiate, token count, report), as Megatron's schedule expects on the last stage."""
        if self._settings.value_tokens is not None:
            (first_R, second_R), (entropy_R, _) = (each.chunk(2) for each in output_2R)
            output_2R = torch.stack([first_R - second_R, entropy_R])
        logprobs_bT = self._whole_rows(output_2R[0], packed, share, sink.num_columns)
        entropy_bT = self._whole_rows(output_2R[1], packed, share, sink.num_columns)
        sink.put(rows_b, logprobs_bT, entropy_bT)
        # With a count of 0, Megatron's finalize_model_grads leaves gradients alone, which are normalized already.
        no_tokens = torch.zeros((), dtype=torch.int, device=output_2R.device)
        if loss is None or not len(rows_b):
            return output_2R.sum() * 0.0, no_tokens, {}
        value, metrics = loss(rows_b, logprobs_bT, entropy_bT)
        sink.add(metrics)
        return value, no_tokens, {}

    def _whole_rows(
        self, values_R: torch.Tensor, packed: PackedSequences, share: "_Share", num_columns: int
    ) -> torch.Tensor:
        """Return this rank's values combined with those of the other context-parallel ranks, as [b, T]."""
        own_bT = values_R.new_zeros(packed.num_sequences, num_columns).index_put(
            (packed.rows_R[share.scored_R], packed.cols_R[share.scored_R]), values_R
        )
        return sum_context(own_bT, self._topology.context_group)


@dataclass(frozen=True)
class _Share:
    """A context-parallel rank's part of a microbatch: L of its S tokens, and the R scored tokens that they predict."""

    tokens_L: torch.Tensor
    """int64 positions in S."""
    positions_R: torch.Tensor
    """int64 positions in L whose hidden states predict the scored tokens."""
    scored_R: torch.Tensor
    """int64 indices into the microbatch's response tokens."""

    @staticmethod
    def of(packed: PackedSequences, topology: Topology) -> "_Share":
        """Return this rank's share; without context parallelism it is the whole microbatch."""
        if topology.context_size == 1:
            every_S, every_R = torch.arange(packed.num_tokens), torch.arange(packed.num_response_tokens)
            return _Share(every_S, packed.predict_positions_R, every_R)
        bounds = packed.cu_seqlens.tolist()
        tokens_L = local_tokens(bounds, topology.context_size, topology.context_rank)
        place_S = torch.full((packed.num_tokens,), -1)
        place_S[tokens_L] = torch.arange(len(tokens_L))
        positions = place_S[packed.predict_positions_R]
        scored_R = (positions >= 0).nonzero(as_tuple=True)[0]
        return _Share(tokens_L, positions[scored_R], scored_R)

    def to(self, device: torch.device) -> "_Share":
        """Return the share with its tensors on `device`."""
        return _Share(*move_together([self.tokens_L, self.positions_R, self.scored_R], device))


class _Sink:
    """Collects rows and metric sums of one data-parallel rank and shares them with all ranks."""

    def __init__(self, num_rows: int, num_columns: int, device: torch.device, keeps_scores: bool) -> None:
        self.num_columns = num_columns
        # Tensors of their own, so that the entropies can be dropped where only log-probs are needed.
        self._scores = (
            Scores(*(torch.zeros(num_rows, num_columns, device=device) for _ in range(2)))
            if keeps_scores
            else None
        )
        self._metrics: dict[str, torch.Tensor] = {}

    def put(self, rows_b: torch.Tensor, logprobs_bT: torch.Tensor, entropy_bT: torch.Tensor) -> None:
        if self._scores is not None:
            self._scores.logprobs_BT[rows_b] = logprobs_bT.detach()
            self._scores.entropy_BT[rows_b] = entropy_bT.detach()

    def add(self, metrics: dict[str, torch.Tensor]) -> None:
        for name, value in metrics.items():
            self._metrics[name] = self._metrics.get(name, torch.zeros_like(value)) + value.detach()

    def share(self, topology: Topology) -> tuple[Scores | None, dict[str, float]]:
        if self._scores is not None:
            sum_over_data_and_share([self._scores.logprobs_BT, self._scores.entropy_BT], topology)
        return self._scores, sum_named_over_data_and_share(self._metrics, topology)
