"""A Megatron GPT model that returns log-probs and entropies of chosen tokens instead of logits.

Shape legend: S packed tokens, R scored tokens, H hidden size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

from megatron_prime.logprobs.output_layer import LogprobKernel, VocabShard, output_logprobs


@dataclass(frozen=True)
class ScoreRequest:
    """The tokens of a packed batch to score, and the settings of the output layer."""

    positions_R: torch.Tensor
    """int64: position in S whose hidden state predicts the token, the position before the token's own."""
    labels_R: torch.Tensor
    """int64: id of the token that is scored."""
    temperature: float
    chunk_tokens: int
    kernel: LogprobKernel = "auto"


class ScoringGPTModel(GPTModel):
    """A GPTModel whose last stage returns [2, R]: log-probs and entropies, float32, nats.

    Only the scored positions go through the output layer (prompts are skipped), and their logits exist a chunk at a
    time. Other stages return hidden states as Megatron does.
    """

    num_real_tokens: int
    """Vocabulary size without padding; set by the builder."""
    _request: ScoreRequest | None = None

    def forward(  # type: ignore[override]
        self,
        token_ids_S: torch.Tensor,
        position_ids_S: torch.Tensor,
        packed_seq_params: PackedSeqParams,
        request: ScoreRequest,
    ) -> torch.Tensor:
        """Return the hidden states [S, 1, H] of this stage, or [2, R] on the last one."""
        self._request = request
        try:
            return super().forward(
                input_ids=token_ids_S[None],
                position_ids=position_ids_S[None],
                attention_mask=None,  # type: ignore[arg-type]
                packed_seq_params=packed_seq_params,
            )
        finally:
            self._request = None

    def _postprocess(self, hidden_states: torch.Tensor, **_unused: Any) -> torch.Tensor:  # type: ignore[override]  # noqa: ANN401
        if not self.post_process:
            return hidden_states
        request = self._request
        assert request is not None
        self._await_output_weight()
        if self.config.sequence_parallel:
            hidden_states = gather_from_sequence_parallel_region(hidden_states, group=self.pg_collection.tp)
        return torch.stack(
            output_logprobs(
                hidden_states.squeeze(1).index_select(0, request.positions_R),
                self.output_weight(),
                request.labels_R,
                self.vocab_shard(),
                request.temperature,
                request.chunk_tokens,
                request.kernel,
            )
        )

    def _await_output_weight(self) -> None:
        """Run the hooks that Megatron's DDP attached to the output layer, whose forward is never called.

        Megatron's DDP waits in hooks of the module that a parameter belongs to, where it gathers parameters in the
        forward pass.
        """
        for hook in self.output_layer._forward_pre_hooks.values():
            hook(self.output_layer, ())

    def output_weight(self) -> torch.Tensor:
        """Return this rank's rows of the output layer, which are those of the embedding if weights are tied."""
        weight = (
            self.shared_embedding_or_output_weight()
            if self.share_embeddings_and_output_weights
            else self.output_layer.weight
        )
        assert weight is not None
        return weight

    def vocab_shard(self) -> VocabShard:
        """Return the rows of the vocabulary that this rank's output layer holds."""
        num_rows = self.output_weight().shape[0]
        first_row = self.pg_collection.tp.rank() * num_rows
        return VocabShard(
            group=self.pg_collection.tp,
            first_row=first_row,
            num_rows=max(0, min(num_rows, self.num_real_tokens - first_row)),
            hidden_is_gathered=self.config.sequence_parallel,
        )
