"""The tables: for each model family, which HF tensors make up each Megatron parameter, and how. Stdlib only.

A further family is a further list of rows; the code that walks them is `hf_mapping`, laying each out by `hf_layouts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Place(Enum):
    """Where in the pipeline a parameter lives."""

    FIRST_STAGE = "first stage"
    LAYER = "every layer"
    DENSE_LAYER = "every layer whose MLP is not a mixture of experts"
    MOE_LAYER = "every layer with experts, once"
    EXPERT = "every expert of every layer with experts"
    LAST_STAGE = "last stage"
    LAST_STAGE_COPY = "last stage, unless it is the first too"


class Layout(Enum):
    """How a Megatron parameter is laid out over the tensor-parallel ranks."""

    REPLICATED = "whole on each rank"
    VOCAB = "equal blocks of the padded vocabulary, dim 0"
    CONCATENATED = "each tensor's own block, one after the other"
    QKV_GROUPS = "each KV group's query heads, key and value, one group after the other"


@dataclass(frozen=True)
class HFTensor:
    """One tensor of an HF checkpoint.

    `dims` and `unit` are names of `ModelShape` attributes; `unit` counts the pieces that may not be divided
    along `parallel_dim` (heads, KV heads). Without a `parallel_dim` the tensor is whole on each rank.
    """

    name: str
    dims: tuple[str, ...]
    parallel_dim: int | None = None
    unit: str | None = None

    @property
    def is_linear(self) -> bool:
        """Whether it is the matrix of a linear layer, which engines quantize; embeddings and routers are not."""
        return len(self.dims) == 2 and self.unit is not None


@dataclass(frozen=True)
class Row:
    """One Megatron parameter; `when` names the flag of `ModelShape` that it needs to be present.

    Names hold `{layer}` and, of an expert's, `{expert}`. `te_name`: where Transformer Engine fuses it into
    the next linear layer. `grouped_name`: where one module computes all experts by a grouped GEMM.
    """

    place: Place
    megatron_name: str
    layout: Layout
    tensors: tuple[HFTensor, ...]
    when: str | None = None
    te_name: str | None = None
    grouped_name: str | None = None


LAYER_PLACES = (Place.LAYER, Place.DENSE_LAYER, Place.MOE_LAYER, Place.EXPERT)


def _norm(name: str, size: str) -> tuple[HFTensor]:
    return (HFTensor(name, (size,)),)


_ATTENTION = "model.layers.{layer}.self_attn"
_MLP = "model.layers.{layer}.mlp"
_DECODER = "decoder.layers.{layer}"
_EMBED_TOKENS = HFTensor("model.embed_tokens.weight", ("vocab_size", "hidden_size"), 0)

_FIRST_ROWS = (Row(Place.FIRST_STAGE, "embedding.word_embeddings.weight", Layout.VOCAB, (_EMBED_TOKENS,)),)
_ATTENTION_ROWS = (
    Row(
        Place.LAYER,
        f"{_DECODER}.input_layernorm.weight",
        Layout.REPLICATED,
        _norm("model.layers.{layer}.input_layernorm.weight", "hidden_size"),
        te_name=f"{_DECODER}.self_attention.linear_qkv.layer_norm_weight",
    ),
    Row(
        Place.LAYER,
        f"{_DECODER}.self_attention.linear_qkv.weight",
        Layout.QKV_GROUPS,
        (
            HFTensor(f"{_ATTENTION}.q_proj.weight", ("query_size", "hidden_size"), 0, "num_attention_heads"),
            HFTensor(f"{_ATTENTION}.k_proj.weight", ("kv_size", "hidden_size"), 0, "num_query_groups"),
            HFTensor(f"{_ATTENTION}.v_proj.weight", ("kv_size", "hidden_size"), 0, "num_query_groups"),
        ),
    ),
    Row(
        Place.LAYER,
        f"{_DECODER}.self_attention.linear_qkv.bias",
        Layout.QKV_GROUPS,
        (
            HFTensor(f"{_ATTENTION}.q_proj.bias", ("query_size",), 0, "num_attention_heads"),
            HFTensor(f"{_ATTENTION}.k_proj.bias", ("kv_size",), 0, "num_query_groups"),
            HFTensor(f"{_ATTENTION}.v_proj.bias", ("kv_size",), 0, "num_query_groups"),
        ),
        when="qkv_bias",
    ),
    Row(
        Place.LAYER,
        f"{_DECODER}.self_attention.q_layernorm.weight",
        Layout.REPLICATED,
        _norm(f"{_ATTENTION}.q_norm.weight", "head_dim"),
        when="qk_norm",
    ),
    Row(
        Place.LAYER,
        f"{_DECODER}.self_attention.k_layernorm.weight",
        Layout.REPLICATED,
        _norm(f"{_ATTENTION}.k_norm.weight", "head_dim"),
        when="qk_norm",
    ),
    Row(
        Place.LAYER,
        f"{_DECODER}.self_attention.linear_proj.weight",
        Layout.CONCATENATED,
        (HFTensor(f"{_ATTENTION}.o_proj.weight", ("hidden_size", "query_size"), 1, "num_attention_heads"),),
    ),
    Row(
        Place.LAYER,
        f"{_DECODER}.self_attention.linear_proj.bias",
        Layout.REPLICATED,
        _norm(f"{_ATTENTION}.o_proj.bias", "hidden_size"),
        when="attention_out_bias",
    ),
)
_DENSE_MLP_ROWS = (
    Row(
        Place.DENSE_LAYER,
        f"{_DECODER}.pre_mlp_layernorm.weight",
        Layout.REPLICATED,
        _norm("model.layers.{layer}.post_attention_layernorm.weight", "hidden_size"),
        te_name=f"{_DECODER}.mlp.linear_fc1.layer_norm_weight",
    ),
    Row(
        Place.DENSE_LAYER,
        f"{_DECODER}.mlp.linear_fc1.weight",
        Layout.CONCATENATED,
        (
            HFTensor(f"{_MLP}.gate_proj.weight", ("ffn_hidden_size", "hidden_size"), 0, "ffn_hidden_size"),
            HFTensor(f"{_MLP}.up_proj.weight", ("ffn_hidden_size", "hidden_size"), 0, "ffn_hidden_size"),
        ),
    ),
    Row(
        Place.DENSE_LAYER,
        f"{_DECODER}.mlp.linear_fc1.bias",
        Layout.CONCATENATED,
        (
            HFTensor(f"{_MLP}.gate_proj.bias", ("ffn_hidden_size",), 0, "ffn_hidden_size"),
            HFTensor(f"{_MLP}.up_proj.bias", ("ffn_hidden_size",), 0, "ffn_hidden_size"),
        ),
        when="mlp_bias",
    ),
    Row(
        Place.DENSE_LAYER,
        f"{_DECODER}.mlp.linear_fc2.weight",
        Layout.CONCATENATED,
        (HFTensor(f"{_MLP}.down_proj.weight", ("hidden_size", "ffn_hidden_size"), 1, "ffn_hidden_size"),),
    ),
    Row(
        Place.DENSE_LAYER,
        f"{_DECODER}.mlp.linear_fc2.bias",
        Layout.REPLICATED,
        _norm(f"{_MLP}.down_proj.bias", "hidden_size"),
        when="mlp_bias",
    ),
)


def _expert_rows(moe: str, gate: str, up: str, down: str) -> tuple[Row, ...]:
    """Rows of a mixture of experts whose HF tensors go by these names."""
    expert = f"{moe}.experts.{{expert}}"
    wide, tall = ("moe_ffn_hidden_size", "hidden_size"), ("hidden_size", "moe_ffn_hidden_size")
    experts = f"{_DECODER}.mlp.experts"
    return (
        Row(
            Place.MOE_LAYER,
            f"{_DECODER}.pre_mlp_layernorm.weight",
            Layout.REPLICATED,
            _norm("model.layers.{layer}.post_attention_layernorm.weight", "hidden_size"),
        ),
        Row(
            Place.MOE_LAYER,
            f"{_DECODER}.mlp.router.weight",
            Layout.REPLICATED,
            (HFTensor(f"{moe}.gate.weight", ("num_experts", "hidden_size")),),
        ),
        Row(
            Place.EXPERT,
            f"{experts}.local_experts.{{expert}}.linear_fc1.weight",
            Layout.CONCATENATED,
            (
                HFTensor(f"{expert}.{gate}.weight", wide, 0, "moe_ffn_hidden_size"),
                HFTensor(f"{expert}.{up}.weight", wide, 0, "moe_ffn_hidden_size"),
            ),
            grouped_name=f"{experts}.linear_fc1.weight{{expert}}",
        ),
        Row(
            Place.EXPERT,
            f"{experts}.local_experts.{{expert}}.linear_fc2.weight",
            Layout.CONCATENATED,
            (HFTensor(f"{expert}.{down}.weight", tall, 1, "moe_ffn_hidden_size"),),
            grouped_name=f"{experts}.linear_fc2.weight{{expert}}",
        ),
    )


_LAST_ROWS = (
    Row(
        Place.LAST_STAGE,
        "decoder.final_layernorm.weight",
        Layout.REPLICATED,
        _norm("model.norm.weight", "hidden_size"),
    ),
    Row(
        Place.LAST_STAGE,
        "output_layer.weight",
        Layout.VOCAB,
        (HFTensor("lm_head.weight", ("vocab_size", "hidden_size"), 0),),
        when="untied",
    ),
    Row(Place.LAST_STAGE_COPY, "output_layer.weight", Layout.VOCAB, (_EMBED_TOKENS,), when="tied"),
)

_DENSE = (*_FIRST_ROWS, *_ATTENTION_ROWS, *_DENSE_MLP_ROWS, *_LAST_ROWS)
_QWEN3_MOE = (
    *_FIRST_ROWS,
    *_ATTENTION_ROWS,
    *_DENSE_MLP_ROWS,
    *_expert_rows("model.layers.{layer}.mlp", "gate_proj", "up_proj", "down_proj"),
    *_LAST_ROWS,
)
_MIXTRAL = (
    *_FIRST_ROWS,
    *_ATTENTION_ROWS,
    *_expert_rows("model.layers.{layer}.block_sparse_moe", "w1", "w3", "w2"),
    *_LAST_ROWS,
)

# The dense families differ in flags of the shape alone.
FAMILIES: dict[str, tuple[Row, ...]] = {
    "qwen2": _DENSE,
    "qwen3": _DENSE,
    "llama": _DENSE,
    "qwen3_moe": _QWEN3_MOE,
    "mixtral": _MIXTRAL,
}
