"""Routing of a mixture of experts in packed batches: Megatron's router with knowledge of sequences and padding.

Megatron's MoE layers see tokens without the sequences that they belong to. Here a layer hands its router the
`TokenRouting` of the microbatch, which load balancing and routing replay need; routers of plain passes need nothing.

Shape legend: L tokens of this context rank, of which a router sees its tensor-parallel rank's share under sequence
parallelism; E experts, K experts a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.moe.router_replay import RouterReplay
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from megatron.core.utils import get_model_config

from megatron_prime.hf.mapping import ModelShape
from megatron_prime.parallel.collectives import sum_in_place
from megatron_prime.parallel.platform import move_together
from megatron_prime.parallel.topology import Topology

if not hasattr(moe_utils, "te_general_gemm"):
    # Megatron imports the name from Transformer Engine, and asks whether it is None without having it.
    moe_utils.te_general_gemm = None  # type: ignore[attr-defined]


@dataclass(frozen=True)
class TokenRouting:
    """Information for routers about the tokens of one microbatch."""

    sequences_L: torch.Tensor
    """int64: index of each token's sequence in the microbatch, -1 for padding."""
    lengths_b: torch.Tensor
    """int64: number of tokens of each sequence, over all ranks that share it."""
    balance_weight: float = 0.0
    """Weight of the load-balancing loss of one sequence; 0 adds no loss."""
    replay: torch.Tensor | None = None
    """int64 [layers of the model, L, K]: experts to use, -1 where the router chooses."""

    def to(self, device: torch.device) -> "TokenRouting":
        """Return the same routing with its tensors on `device`."""
        replay = [] if self.replay is None else [self.replay]
        sequences_L, lengths_b, *moved = move_together([self.sequences_L, self.lengths_b, *replay], device)
        return TokenRouting(sequences_L, lengths_b, self.balance_weight, moved[0] if moved else None)


@dataclass
class RoutedSeqParams(PackedSeqParams):
    """Megatron's description of a packed batch, with the routing of its tokens."""

    routing: TokenRouting | None = None


class PartialReplay(RouterReplay):
    """Megatron's replay of given experts, restricted to some tokens: the others keep the router's choice.

    Their probabilities are the router's in either case, and so are the gradients.
    """

    def __init__(self) -> None:
        super().__init__()
        # Megatron keeps a global list of replays and sets all of them at once. Here each layer sets its own, and a
        # global reference would keep models alive after they are deleted.
        RouterReplay.global_router_replay_instances.remove(self)

    def get_replay_topk(
        self,
        scores: torch.Tensor,
        topk: int,
        num_groups: int | None = None,
        group_topk: int | None = None,
        default_compute_topk: Any = None,  # noqa: ANN401
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the values and indices of the chosen experts, [tokens, K] each."""
        values, chosen = default_compute_topk(scores, topk, num_groups=num_groups, group_topk=group_topk)
        if self.target_topk_idx is None:
            return values, chosen
        taken = torch.where(self.target_topk_idx < 0, chosen, self.target_topk_idx)
        return scores.gather(1, taken), taken


class PackedRouter(TopKRouter):
    """Megatron's top-k router with the sequence-wise load-balancing loss and with replay.

    The loss of one sequence of T tokens in one layer is that of DeepSeek-V3 (arXiv 2412.19437, Eq. 17-20):
    sum over experts of f_i * P_i, with f_i = E / (K T) * (tokens that chose expert i) and P_i = the mean over the
    tokens of the softmax of the router's logits. Megatron's own is taken over a microbatch, and so depends on the
    packing.
    """

    def __init__(
        self, config: TransformerConfig, pg_collection: ProcessGroupCollection | None = None
    ) -> None:
        super().__init__(config=config, pg_collection=pg_collection)
        self.token_routing: TokenRouting | None = None
        self.router_replay = PartialReplay()

    def routing(
        self, logits: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the probabilities [tokens, E] of the chosen experts, 0 elsewhere, and the mask of chosen experts."""
        tokens = self.token_routing
        self._prepare_replay(tokens)
        probs_LE, chosen_LE = super().routing(logits, padding_mask)
        if tokens is not None and tokens.balance_weight and torch.is_grad_enabled():
            probs_LE = self._add_balance_loss(tokens, logits.flatten(0, -2), probs_LE, chosen_LE)
        return probs_LE, chosen_LE

    def _prepare_replay(self, tokens: TokenRouting | None) -> None:
        assert self.layer_number is not None
        target = None if tokens is None or tokens.replay is None else tokens.replay[self.layer_number - 1]
        self.router_replay.target_topk_idx = None if target is None else self._own(target)

    def _own(self, values_L: torch.Tensor) -> torch.Tensor:
        """Return this tensor-parallel rank's share of values of all L tokens."""
        if not self.config.sequence_parallel:
            return values_L
        return values_L.chunk(self.tp_group.size())[self.tp_group.rank()]

    def _add_balance_loss(
        self, tokens: TokenRouting, logits_LE: torch.Tensor, probs_LE: torch.Tensor, chosen_LE: torch.Tensor
    ) -> torch.Tensor:
        """Return the probabilities; their backward pass adds the gradient of this rank's part of the loss."""
        if not len(tokens.lengths_b):  # All is padding.
            return probs_LE
        sequences_L = self._own(tokens.sequences_L)
        # Padding is multiplied by 0: a boolean index would wait for the GPU to count the others.
        real_L1, rows_L = (sequences_L >= 0)[:, None], sequences_L.clamp(min=0)
        num_experts = logits_LE.shape[1]
        counts_bE = logits_LE.new_zeros(len(tokens.lengths_b), num_experts, dtype=torch.float32)
        counts_bE.index_add_(0, rows_L, (chosen_LE & real_L1).float())
        sum_in_place(counts_bE, self.tp_cp_group)
        means_LE = torch.softmax(logits_LE.float(), dim=-1) / tokens.lengths_b[rows_L, None]
        shares_bE = counts_bE * num_experts / (self.topk * tokens.lengths_b[:, None])
        loss = tokens.balance_weight * (shares_bE[rows_L] * means_LE * real_L1).sum()
        return MoEAuxLossAutoScaler.apply(probs_LE, loss)  # type: ignore[return-value]


class RoutedTransformerLayer(TransformerLayer):
    """A layer that passes the token routing to its router, also in a recomputed forward pass."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Run the layer; see TransformerLayer.forward."""
        packed = kwargs.get("packed_seq_params")
        router: Any = self.mlp.router  # type: ignore[attr-defined]
        router.token_routing = packed.routing if isinstance(packed, RoutedSeqParams) else None
        return super().forward(*args, **kwargs)


def check_routing(
    routing: Sequence[torch.Tensor | None],
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    config: TransformerConfig,
) -> None:
    """Raise ValueError unless the experts to replay have the shape of these sequences in this model."""
    if config.num_moe_experts is None:
        raise ValueError(
            "there are no experts to replay in a dense model: set rollout.sglang.routing_replay = false"
        )
    for row, ((prompt, response), experts) in enumerate(zip(sequences, routing, strict=True)):
        dims = (len(prompt) + len(response) - 1, config.num_layers, config.moe_router_topk)
        if experts is not None and tuple(experts.shape) != dims:
            raise ValueError(
                f"row {row}: experts to replay have shape {tuple(experts.shape)}, {dims} is needed"
            )


def replay_tensor(
    routing: Sequence[torch.Tensor | None], starts: Sequence[int], num_tokens: int, config: TransformerConfig
) -> torch.Tensor:
    """Return `TokenRouting.replay` for all tokens of a microbatch whose sequences begin at `starts`."""
    replay = torch.full((config.num_layers, num_tokens, config.moe_router_topk), -1)
    for experts, start in zip(routing, starts, strict=False):
        if experts is not None:
            replay[:, start : start + len(experts)] = experts.transpose(0, 1).to(torch.int64)
    return replay


def expert_settings(shape: ModelShape, topology: Topology) -> dict[str, Any]:
    """Return the settings that a mixture of experts adds to Megatron's TransformerConfig. No token is dropped."""
    settings: dict[str, Any] = {
        "num_moe_experts": shape.num_experts,
        "moe_ffn_hidden_size": shape.moe_ffn_hidden_size,
        "moe_router_topk": shape.num_experts_per_tok,
        # Softmax over the chosen experts only equals softmax over all experts, normalized over the chosen ones.
        "moe_router_pre_softmax": not shape.norm_topk_prob,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "none",
        "moe_grouped_gemm": False,
        "expert_model_parallel_size": topology.expert_size,
        "expert_tensor_parallel_size": topology.expert_tensor_size,
    }
    if shape.dense_layers:
        settings["moe_layer_freq"] = [int(shape.has_experts(layer)) for layer in range(shape.num_layers)]
    return settings


def drop_router_outputs(chunks: Sequence[torch.nn.Module]) -> None:
    """Drop the router probabilities that token dispatchers keep from a backward pass.

    Their autograd graph leads to the hooks of the data-parallel wrapper, and from there to the model that owns the
    dispatcher. Part of this cycle is in C++, where Python's garbage collector cannot see it, so a model whose
    dispatchers still hold them is never freed.
    """
    for chunk in chunks:
        if not get_model_config(chunk).num_moe_experts:
            continue
        for layer in (module for module in chunk.modules() if isinstance(module, MoELayer)):
            for name, value in vars(layer.token_dispatcher).items():
                if isinstance(value, torch.Tensor) and value.requires_grad:
                    setattr(layer.token_dispatcher, name, None)
