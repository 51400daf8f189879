"""Memory of forward and backward passes beyond weights and gradient buffers.

Elements per token that a layer keeps for its backward pass, as this package's layers in plain torch do (h hidden size,
q query size, k KV size, f FFN size, d head size):

    attention   6 h + 4 q + 3 k + 4 d    hidden states and norms (4 h with the norms in one kernel, as GPUs have them);
                                         queries before and after rotation, and the result twice; keys twice, and
                                         values; sines and cosines
                + q + k (+ q)            with query and key norms (grouped queries are copied for them); on GPUs, where
                                         they keep the projection's result, + q for several groups on a rank
    MLP         5 f                      gate and up projection, silu, product, and a copy of the product (3 f on GPUs,
                                         where silu and product are one kernel)
    experts     K (6 f + h) + 5 E        K of E experts per token; f is the FFN size of an expert

Tensor, sequence and context parallelism divide these, and recomputation drops most of them; `_Sizes.kept` has the
details. On top comes the largest transient of the backward pass (`_Sizes.backward_peak`). For experts, it is the tokens
on their way: a token's K copies of h are held five times in a forward pass (permuted, received, the experts' results,
those sent back, and weighed), and their gradients three times in a backward pass, beside what is recomputed.
In FP8, linear layers keep their inputs in 1 byte an element (planning/fp8.py): h + q + h + f, or K (h + f) for experts.
`benchmarks/planning/plan_accuracy.py` compares the plan with measurements.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from megatron_prime.config.tables.performance.fp8 import Fp8Config
from megatron_prime.config.tables.performance.memory import RecomputeConfig
from megatron_prime.hf.shape import ModelShape
from megatron_prime.planning.fp8 import INPUT_BYTES, is_fp8_layer
from megatron_prime.planning.planned_run import PlannedRun

TILE_ELEMENTS = {"cpu": 2**18, "cuda": 2**24}
"""Number of logits in a tile of the output layer (logprobs/tiles.py)."""
MIN_COLUMNS = 256
"""Minimum number of vocabulary columns in a tile."""
FP32 = 4
"""Bytes of a float32."""


@dataclass(frozen=True)
class Activations:
    """Bytes of activations on one rank."""

    kept: int
    """Bytes that layers keep for their backward pass, over all microbatches in flight."""
    transient: int
    """Bytes of the largest transient on top of `kept`, in a layer or in the output layer."""
    tiles: int
    """Part of `transient` in the output layer: tiles, and gradients of its weight and of hidden states."""

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return self.kept + self.transient


def training_activations(run: PlannedRun, role: str, stage: int, microbatches: int) -> Activations:
    """Return the activations of an update of a role on a rank of a pipeline stage.

    Args:
        run: The run.
        role: `policy` or `prm`.
        stage: Pipeline stage, from 0.
        microbatches: Number of microbatches per minibatch on the rank.
    """
    sizes = _Sizes.of(run, role)
    layout, recompute = run.layout, run.config.memory.recompute
    chunks = layout.stage_layers(sizes.shape)[stage]
    layers = [layer for chunk in chunks for layer in chunk]
    kinds = _layer_of_each_kind(sizes, layers)
    kept = {
        kind: sizes.kept(layer, recompute.granularity, recompute.modules) for kind, layer in kinds.items()
    }
    whole = {kind: sizes.kept(layer, "none", ()) for kind, layer in kinds.items()}
    kind_of = sizes.kind
    per_layer: list[float] = [kept[kind_of(layer)] for layer in layers]
    if recompute.granularity == "full" and recompute.method == "block":
        # The first num_layers are recomputed, the others keep everything.
        per_layer[recompute.num_layers :] = [
            whole[kind_of(layer)] for layer in layers[recompute.num_layers :]
        ]
    if recompute.granularity == "full" and recompute.method == "uniform":
        # One input is kept for each group of num_layers layers.
        per_layer = [total / recompute.num_layers for total in per_layer]
    # During the backward pass, one group of layers is recomputed and then holds all its activations.
    recomputed = max(whole.values()) if recompute.granularity == "full" else 0
    recomputed *= recompute.num_layers if recompute.method == "uniform" else 1
    # Only the last stage has the output layer.
    output = sizes.output_backward() if stage == layout.pp - 1 else 0.0
    peak = max(sizes.backward_peak(layer, recompute) for layer in kinds.values())
    numbers = in_flight(layout.pp, layout.vpp, stage, microbatches)
    of_chunks = [number for number, chunk in zip(numbers, chunks, strict=True) for _ in chunk]
    return Activations(
        int(sum(number * size for number, size in zip(of_chunks, per_layer, strict=True))),
        int(max(recomputed + peak, output)),
        int(min(output, max(peak, output))),
    )


def scoring_activations(run: PlannedRun, role: str, stage: int) -> Activations:
    """Return the activations of a forward pass without gradients."""
    sizes = _Sizes.of(run, role)
    layers = _layer_of_each_kind(sizes, range(sizes.shape.num_layers)).values()
    peak = max(sizes.forward_peak(layer) for layer in layers)
    output = sizes.output_forward() if stage == run.layout.pp - 1 else 0.0
    # Without gradients nothing is kept from layer to layer.
    return Activations(0, int(max(peak, output)), int(output))


def routing_bytes(run: PlannedRun, role: str, stage: int) -> int:
    """Return the bytes that the layers of a role leave behind of the choice of experts, until their next pass."""
    if not run.shapes[role].is_moe:
        return 0
    sizes = _Sizes.of(run, role)
    layers = [layer for chunk in run.layout.stage_layers(sizes.shape)[stage] for layer in chunk]
    return int(sizes.routing(sum(sizes.shape.has_experts(layer) for layer in layers)))


def _layer_of_each_kind(sizes: "_Sizes", layers: Iterable[int]) -> dict[tuple[bool, bool], int]:
    """Return a layer of each kind, as far as there are any; others equal these."""
    return {sizes.kind(layer): layer for layer in layers}


def in_flight(pp: int, vpp: int, stage: int, microbatches: int) -> list[int]:
    """Return the number of microbatches whose activations a stage holds at the same time, for each of its chunks."""
    if vpp == 1:
        # 1F1B: a stage runs ahead by the number of stages after it.
        return [min(microbatches, pp - stage)]
    # Megatron's interleaved schedule runs this many forward passes of a chunk ahead of the first backward pass. The
    # chunks take turns after pp microbatches, and the last ones are filled up with empty ones (models/forward.py).
    whole_turns = -(-microbatches // pp) * pp * vpp
    numbers = [0] * vpp
    for unit in range(min(whole_turns, (pp - stage - 1) * 2 + (vpp - 1) * pp + 1)):
        turn, place = divmod(unit, pp)
        numbers[turn % vpp] += turn // vpp * pp + place < microbatches
    return numbers


@dataclass(frozen=True)
class _Sizes:
    """Sizes on one rank: elements per token, and bytes for the tokens of a microbatch."""

    shape: ModelShape
    tokens: float
    """Tokens of a microbatch on one context-parallel rank."""
    scored: float
    """Tokens of `tokens` whose log-probabilities are computed: those of responses."""
    whole: float
    """Fraction of the hidden states on this rank: 1, or 1 / tp with sequence parallelism."""
    split: float
    """Fraction of a tensor-parallel weight on this rank, 1 / tp."""
    expert_split: float
    """Fraction of an expert's weight on this rank, 1 / etp."""
    width: int
    """Bytes per element."""
    chunk: int
    """Tokens per tile of the output layer."""
    is_cuda: bool
    vocab_rows: int
    """Rows of the output layer on this rank, including padding."""
    has_kernels: bool
    """True if Triton kernels are used, which work in place on the logits of a tile."""
    role: str
    fp8: Fp8Config

    @staticmethod
    def of(run: PlannedRun, role: str) -> "_Sizes":
        shape = run.shapes[role]
        parallel, trainer, rollout = run.config.parallel, run.config.trainer, run.config.rollout
        share = rollout.max_response_tokens / rollout.max_sequence_tokens
        tokens = trainer.max_tokens_per_microbatch / parallel.context
        return _Sizes(
            shape,
            tokens,
            tokens * share,
            1 / parallel.tensor if parallel.sequence_parallel else 1.0,
            1 / parallel.tensor,
            1 / parallel.expert_tensor,
            run.dtype_bytes,
            trainer.logprob_chunk_tokens,
            run.config.platform.device != "cpu",
            shape.padded_vocab_size(parallel.tensor) // parallel.tensor,
            run.config.platform.device != "cpu" and trainer.logprob_kernel != "torch",
            role,
            run.config.fp8,
        )

    def kind(self, layer: int) -> tuple[bool, bool]:
        """Return whether a layer has experts, and whether it computes in FP8."""
        is_fp8 = is_fp8_layer(self.fp8, self.role, layer, self.shape.num_layers)
        return self.shape.has_experts(layer), is_fp8

    @property
    def hidden(self) -> float:
        return self.shape.hidden_size * self.whole

    @property
    def ffn(self) -> float:
        return self.shape.ffn_hidden_size * self.split

    def attention(self) -> float:
        s = self.shape
        query, kv = s.query_size * self.split, s.kv_size * self.split
        total = (4 if self.is_cuda else 6) * self.hidden + 4 * query + 3 * kv + 4 * s.head_dim
        if s.qk_norm and self.is_cuda:
            total += query if s.num_query_groups * self.split > 1 else 0
        elif s.qk_norm:
            total += query + kv + (query if s.num_attention_heads != s.num_query_groups else 0)
        return total

    def mlp(self, layer: int) -> float:
        s = self.shape
        if not s.has_experts(layer):
            return (3 if self.is_cuda else 5) * self.ffn
        expert = 6 * s.moe_ffn_hidden_size * self.expert_split + s.hidden_size
        # Sequence parallelism hands each rank a share of the tokens to route.
        return (s.num_experts_per_tok * expert + 5 * s.num_experts) * (self.whole if s.is_moe else 1.0)

    def kept(self, layer: int, granularity: str, modules: tuple[str, ...]) -> float:
        """Return the bytes that a layer keeps of one microbatch, with a granularity of recomputation."""
        if granularity == "full":
            return self.tokens * self.hidden * self.width
        attention, mlp = self.attention(), self.mlp(layer)
        # float32 statistics per token: the softmax's log-sum-exp per head, and the two norms' scales.
        statistics = self.shape.num_attention_heads * self.split + 2
        if granularity == "selective" and "core_attn" in modules:
            attention -= self.shape.query_size * self.split
            statistics = 2
        has_experts = self.shape.has_experts(layer)
        if granularity == "selective" and ("moe" if has_experts else "mlp") in modules:
            mlp = 0.0
        # torch's RMSNorm keeps a float32 copy of a narrower input on a CPU.
        upcast = 2 * self.hidden * FP32 if self.width < FP32 and not self.is_cuda else 0.0
        elements = self.tokens * ((attention + mlp) * self.width + statistics * FP32 + upcast)
        return elements - self._saved_by_fp8(layer, keeps_mlp=mlp > 0)

    def _saved_by_fp8(self, layer: int, *, keeps_mlp: bool) -> float:
        """Return the bytes by which the inputs that a layer's matrix products keep are smaller in FP8."""
        has_experts, is_fp8 = self.kind(layer)
        if not is_fp8:
            return 0.0
        inputs = self.hidden + self.shape.query_size * self.split
        if keeps_mlp and has_experts:
            expert = self.shape.hidden_size + self.shape.moe_ffn_hidden_size * self.expert_split
            inputs += self.shape.num_experts_per_tok * expert * (self.whole if self.shape.is_moe else 1.0)
        elif keeps_mlp:
            inputs += self.hidden + self.ffn
        return self.tokens * inputs * (self.width - INPUT_BYTES[self.fp8.recipe_of(self.role)])

    def backward_peak(self, layer: int, recompute: RecomputeConfig) -> float:
        """Return the bytes of the largest transient of a layer's backward pass."""
        granularity = recompute.granularity
        if self.is_cuda and self.shape.has_experts(layer):
            is_recomputed = granularity == "selective" and "moe" in recompute.modules
            recomputed = self.mlp(layer) if is_recomputed else 0.0
            return self.tokens * self.width * (recomputed + 3 * self._dispatched())
        if self.is_cuda:
            # Whole hidden states and their gradient, the gradients of all projections, and what is computed again.
            recomputed = 3 if granularity == "selective" else 0
            return (
                self.tokens
                * self.width
                * (2 * self.shape.hidden_size + (3 + recomputed) * self._mlp_width(layer))
            )
        mlp = self.shape.hidden_size * self.whole + 2 * self._mlp_width(layer)
        if granularity == "selective":
            mlp += self.hidden + 5 * self._mlp_width(layer)
        return self.tokens * max(mlp * self.width, 6 * self.hidden * FP32)

    def forward_peak(self, layer: int) -> float:
        """Return the bytes of the largest transient of a layer's forward pass without gradients."""
        query, kv = self.shape.query_size * self.split, self.shape.kv_size * self.split
        attention = 2 * self.hidden + 4 * query + 7 * kv
        if self.is_cuda and self.shape.has_experts(layer):
            return self.tokens * self.width * max(attention, 4 * self.hidden + 5 * self._dispatched())
        return self.tokens * self.width * max(attention, 4 * self.hidden + 5 * self._mlp_width(layer))

    def _dispatched(self) -> float:
        """Return the elements of a token's copies for its experts."""
        return self.shape.num_experts_per_tok * self.hidden

    def routing(self, num_layers: int) -> float:
        """Return the bytes of what routers leave until their next pass: float32 weights, and a map of experts."""
        per_token = self.shape.num_experts * (FP32 + 1) + 8 * self.shape.num_experts_per_tok
        return num_layers * self.tokens * self.whole * per_token

    def _mlp_width(self, layer: int) -> float:
        if not self.shape.has_experts(layer):
            return self.ffn
        # The tokens of all chosen experts are dispatched at once, but computed expert by expert.
        return self.shape.moe_ffn_hidden_size * self.expert_split

    def output_forward(self) -> float:
        """Return the bytes of the output layer: all hidden states, the scored ones, and the tiles."""
        states = (2 * self.tokens + self.scored) * self.shape.hidden_size * self.width
        return states + self._tiles()

    def output_backward(self) -> float:
        """Return the bytes of the output layer with float32 gradients of its weight and of scored hidden states."""
        hidden = self.shape.hidden_size
        narrow = self.width < FP32
        weight = self.vocab_rows * hidden * (FP32 + (self.width if narrow else 0))
        return self.output_forward() + self.scored * hidden * FP32 + weight

    def _tiles(self) -> float:
        chunk = max(1, min(self.chunk, int(self.scored)))
        elements = TILE_ELEMENTS["cuda" if self.is_cuda else "cpu"]
        columns = min(self.vocab_rows, max(MIN_COLUMNS, elements // chunk))
        if self.has_kernels:
            return chunk * columns * self.width
        return chunk * columns * (2 * FP32 + (self.width if self.width < FP32 else 0))
