"""Bytes of a forward and backward pass beyond weights and gradient buffers.

Elements that a layer keeps for its backward pass, for each token, as this package's layers in plain torch do (h hidden
size, q query size, k KV size, f FFN size, n heads, d head size):

    attention   6 h + 4 q + 3 k + 4 d    hidden states, norms; queries before and after rotation, result twice; keys
                                         twice, values; sines and cosines
                + q + k (+ q)            with query and key norms (grouped queries are copied for it)
    MLP         5 f                      gate and up, silu, product, and a copy of it
    experts     K (6 f + h) + 5 E        K of E experts a token; f is an expert's

What is left of it under tensor, sequence, context parallelism and recomputation, and the largest moment of the backward
pass, follow in `peak_bytes`. `benchmarks/plan_accuracy.py` compares with what is measured.
"""

from dataclasses import dataclass

from megatron_prime.hf.shape import ModelShape
from megatron_prime.planning.job import Job

TILE_ELEMENTS = {"cpu": 2**18, "cuda": 2**24}
"""Logits of a tile of the output layer (parallel.vocab_logprobs)."""
FEWEST_COLUMNS = 256
FP32 = 4


@dataclass(frozen=True)
class Activations:
    """Bytes on one rank."""

    kept: int
    """By layers, over all microbatches in flight."""
    transient: int
    """The largest moment on top: in a layer, or in the output layer."""
    tiles: int
    """Of `transient`, what the output layer takes: tiles, gradients of its weight and of hidden states."""

    @property
    def total(self) -> int:
        """All."""
        return self.kept + self.transient


def training_activations(job: Job, role: str, stage: int, microbatches: int) -> Activations:
    """Of one update of a role on a rank of a pipeline stage."""
    sizes = _Sizes.of(job, job.shapes[role])
    layout, recompute = job.layout, job.config.memory.recompute
    chunks = layout.stage_layers(sizes.shape.num_layers)[stage]
    layers = [layer for chunk in chunks for layer in chunk]
    flight = in_flight(layout.pp, layout.vpp, stage, microbatches) / layout.vpp
    per_layer = [sizes.kept(layer, recompute.granularity, recompute.modules) for layer in layers]
    if recompute.granularity == "full" and recompute.method == "block":
        whole = [sizes.kept(layer, "none", ()) for layer in layers]
        per_layer = per_layer[: recompute.num_layers] + whole[recompute.num_layers :]
    if recompute.granularity == "full" and recompute.method == "uniform":
        per_layer = [total / recompute.num_layers for total in per_layer]
    again = max(sizes.kept(layer, "none", ()) for layer in layers) if recompute.granularity == "full" else 0
    again *= recompute.num_layers if recompute.method == "uniform" else 1
    output = sizes.output_backward() if stage == layout.pp - 1 else 0.0
    moment = max(sizes.moment(layer, recompute.granularity) for layer in layers)
    return Activations(
        int(flight * sum(per_layer)), int(max(again + moment, output)), int(min(output, max(moment, output)))
    )


def scoring_activations(job: Job, role: str, stage: int) -> Activations:
    """Of a pass without gradients."""
    sizes = _Sizes.of(job, job.shapes[role])
    layers = range(sizes.shape.num_layers)
    inside = max(sizes.forward_moment(layer) for layer in layers)
    output = sizes.output_forward() if stage == job.layout.pp - 1 else 0.0
    return Activations(0, int(max(inside, output)), int(output))


def in_flight(pp: int, vpp: int, stage: int, microbatches: int) -> int:
    """Microbatches, or with chunks their parts, whose activations a stage holds at one time (1F1B, interleaved)."""
    if vpp == 1:
        return min(microbatches, pp - stage)
    return min(microbatches * vpp, (pp - stage - 1) * 2 + (vpp - 1) * pp + 1)


@dataclass(frozen=True)
class _Sizes:
    """Sizes on one rank, in elements a token, times the tokens of a microbatch."""

    shape: ModelShape
    tokens: float
    """Of a microbatch on this context rank."""
    scored: float
    whole: float
    """Share of hidden states: 1, or 1 / tp with sequence parallelism."""
    split: float
    """1 / tp."""
    expert_split: float
    width: int
    """Bytes an element."""
    chunk: int
    is_cuda: bool
    vocab_rows: int
    has_kernels: bool
    """Triton kernels work in the one buffer that the product was written to."""

    @staticmethod
    def of(job: Job, shape: ModelShape) -> "_Sizes":
        parallel, trainer, rollout = job.config.parallel, job.config.trainer, job.config.rollout
        share = rollout.max_response_tokens / (rollout.max_prompt_tokens + rollout.max_response_tokens)
        tokens = trainer.max_tokens_per_microbatch / parallel.context
        return _Sizes(
            shape,
            tokens,
            tokens * share,
            1 / parallel.tensor if parallel.sequence_parallel else 1.0,
            1 / parallel.tensor,
            1 / parallel.expert_tensor,
            job.dtype_bytes,
            trainer.logprob_chunk_tokens,
            job.config.platform.device != "cpu",
            shape.padded_vocab_size(parallel.tensor) // parallel.tensor,
            job.config.platform.device != "cpu" and trainer.logprob_kernel != "torch",
        )

    @property
    def hidden(self) -> float:
        return self.shape.hidden_size * self.whole

    @property
    def ffn(self) -> float:
        return self.shape.ffn_hidden_size * self.split

    def attention(self) -> float:
        s = self.shape
        query, kv = s.query_size * self.split, s.kv_size * self.split
        total = 6 * self.hidden + 4 * query + 3 * kv + 4 * s.head_dim
        if s.qk_norm:
            total += query + kv + (query if s.num_attention_heads != s.num_query_groups else 0)
        return total

    def mlp(self, layer: int) -> float:
        s = self.shape
        if not s.has_experts(layer):
            return 5 * self.ffn
        expert = 6 * s.moe_ffn_hidden_size * self.expert_split + s.hidden_size
        # Sequence parallelism hands each rank a share of the tokens to route.
        return (s.num_experts_per_tok * expert + 5 * s.num_experts) * (self.whole if s.is_moe else 1.0)

    def kept(self, layer: int, granularity: str, modules: tuple[str, ...]) -> float:
        """Bytes that a layer keeps of one microbatch."""
        if granularity == "full":
            return self.tokens * self.hidden * self.width
        attention, mlp = self.attention(), self.mlp(layer)
        small = self.shape.num_attention_heads * self.split + 2
        if granularity == "selective" and "core_attn" in modules:
            attention -= self.shape.query_size * self.split
            small = 2
        has_experts = self.shape.has_experts(layer)
        if granularity == "selective" and ("moe" if has_experts else "mlp") in modules:
            mlp = 0.0
        # torch's RMSNorm keeps a float32 copy of a narrower input on a CPU.
        upcast = 2 * self.hidden * FP32 if self.width < FP32 and not self.is_cuda else 0.0
        return self.tokens * ((attention + mlp) * self.width + small * FP32 + upcast)

    def moment(self, layer: int, granularity: str) -> float:
        """Bytes of the largest moment of a layer's backward pass."""
        mlp = self.shape.hidden_size * self.whole + 2 * self._mlp_width(layer)
        if granularity == "selective":
            mlp += self.hidden + 5 * self._mlp_width(layer)
        return self.tokens * max(mlp * self.width, 6 * self.hidden * FP32)

    def forward_moment(self, layer: int) -> float:
        """Bytes of the largest moment of a layer without gradients."""
        query, kv = self.shape.query_size * self.split, self.shape.kv_size * self.split
        attention = 2 * self.hidden + 4 * query + 7 * kv
        return self.tokens * self.width * max(attention, 4 * self.hidden + 5 * self._mlp_width(layer))

    def _mlp_width(self, layer: int) -> float:
        if not self.shape.has_experts(layer):
            return self.ffn
        # All chosen experts' tokens are dispatched at once, and worked on expert by expert.
        return self.shape.moe_ffn_hidden_size * self.expert_split

    def output_forward(self) -> float:
        """Bytes of the output layer: hidden states, the scored ones, the tiles."""
        states = (2 * self.tokens + self.scored) * self.shape.hidden_size * self.width
        return states + self._tiles()

    def output_backward(self) -> float:
        """And the float32 gradients of its weight and of the scored hidden states."""
        hidden = self.shape.hidden_size
        narrow = self.width < FP32
        weight = self.vocab_rows * hidden * (FP32 + (self.width if narrow else 0))
        return self.output_forward() + self.scored * hidden * FP32 + weight

    def _tiles(self) -> float:
        chunk = max(1, min(self.chunk, int(self.scored)))
        elements = TILE_ELEMENTS["cuda" if self.is_cuda else "cpu"]
        columns = min(self.vocab_rows, max(FEWEST_COLUMNS, elements // chunk))
        if self.has_kernels:
            return chunk * columns * self.width
        return chunk * columns * (2 * FP32 + (self.width if self.width < FP32 else 0))
