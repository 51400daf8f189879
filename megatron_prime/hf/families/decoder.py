"""Rows of the parameter table that Llama-like decoders share: embedding, attention, dense MLP, output layer."""

from __future__ import annotations

from megatron_prime.hf.families.table import HFTensor, ParameterRow, Placement, TensorLayout


def replicated_vector(name: str, size: str) -> tuple[HFTensor]:
    """Return the table entry of a vector that each tensor-parallel rank holds whole: a norm or an output bias."""
    return (HFTensor(name, (size,)),)


_ATTENTION = "model.layers.{layer}.self_attn"
_MLP = "model.layers.{layer}.mlp"
DECODER = "decoder.layers.{layer}"
"""Prefix of the Megatron names of a layer's parameters."""
_EMBED_TOKENS = HFTensor("model.embed_tokens.weight", ("vocab_size", "hidden_size"), 0)

# The order of the rows is the order of the tensors in a checkpoint that is written.
EMBEDDING_ROWS = (
    ParameterRow(
        Placement.FIRST_STAGE, "embedding.word_embeddings.weight", TensorLayout.VOCAB, (_EMBED_TOKENS,)
    ),
)
ATTENTION_ROWS = (
    ParameterRow(
        Placement.LAYER,
        f"{DECODER}.input_layernorm.weight",
        TensorLayout.REPLICATED,
        replicated_vector("model.layers.{layer}.input_layernorm.weight", "hidden_size"),
        te_name=f"{DECODER}.self_attention.linear_qkv.layer_norm_weight",
    ),
    ParameterRow(
        Placement.LAYER,
        f"{DECODER}.self_attention.linear_qkv.weight",
        TensorLayout.QKV_GROUPS,
        (
            HFTensor(f"{_ATTENTION}.q_proj.weight", ("query_size", "hidden_size"), 0, "num_attention_heads"),
            HFTensor(f"{_ATTENTION}.k_proj.weight", ("kv_size", "hidden_size"), 0, "num_query_groups"),
            HFTensor(f"{_ATTENTION}.v_proj.weight", ("kv_size", "hidden_size"), 0, "num_query_groups"),
        ),
    ),
    ParameterRow(
        Placement.LAYER,
        f"{DECODER}.self_attention.linear_qkv.bias",
        TensorLayout.QKV_GROUPS,
        (
            HFTensor(f"{_ATTENTION}.q_proj.bias", ("query_size",), 0, "num_attention_heads"),
            HFTensor(f"{_ATTENTION}.k_proj.bias", ("kv_size",), 0, "num_query_groups"),
            HFTensor(f"{_ATTENTION}.v_proj.bias", ("kv_size",), 0, "num_query_groups"),
        ),
        when="qkv_bias",
    ),
    ParameterRow(
        Placement.LAYER,
        f"{DECODER}.self_attention.q_layernorm.weight",
        TensorLayout.REPLICATED,
        replicated_vector(f"{_ATTENTION}.q_norm.weight", "head_dim"),
        when="qk_norm",
    ),
    ParameterRow(
        Placement.LAYER,
        f"{DECODER}.self_attention.k_layernorm.weight",
        TensorLayout.REPLICATED,
        replicated_vector(f"{_ATTENTION}.k_norm.weight", "head_dim"),
        when="qk_norm",
    ),
    ParameterRow(
        Placement.LAYER,
        f"{DECODER}.self_attention.linear_proj.weight",
        TensorLayout.CONCATENATED,
        (HFTensor(f"{_ATTENTION}.o_proj.weight", ("hidden_size", "query_size"), 1, "num_attention_heads"),),
    ),
    ParameterRow(
        Placement.LAYER,
        f"{DECODER}.self_attention.linear_proj.bias",
        TensorLayout.REPLICATED,
        replicated_vector(f"{_ATTENTION}.o_proj.bias", "hidden_size"),
        when="attention_out_bias",
    ),
)
DENSE_MLP_ROWS = (
    ParameterRow(
        Placement.DENSE_LAYER,
        f"{DECODER}.pre_mlp_layernorm.weight",
        TensorLayout.REPLICATED,
        replicated_vector("model.layers.{layer}.post_attention_layernorm.weight", "hidden_size"),
        te_name=f"{DECODER}.mlp.linear_fc1.layer_norm_weight",
    ),
    ParameterRow(
        Placement.DENSE_LAYER,
        f"{DECODER}.mlp.linear_fc1.weight",
        TensorLayout.CONCATENATED,
        (
            HFTensor(f"{_MLP}.gate_proj.weight", ("ffn_hidden_size", "hidden_size"), 0, "ffn_hidden_size"),
            HFTensor(f"{_MLP}.up_proj.weight", ("ffn_hidden_size", "hidden_size"), 0, "ffn_hidden_size"),
        ),
    ),
    ParameterRow(
        Placement.DENSE_LAYER,
        f"{DECODER}.mlp.linear_fc1.bias",
        TensorLayout.CONCATENATED,
        (
            HFTensor(f"{_MLP}.gate_proj.bias", ("ffn_hidden_size",), 0, "ffn_hidden_size"),
            HFTensor(f"{_MLP}.up_proj.bias", ("ffn_hidden_size",), 0, "ffn_hidden_size"),
        ),
        when="mlp_bias",
    ),
    ParameterRow(
        Placement.DENSE_LAYER,
        f"{DECODER}.mlp.linear_fc2.weight",
        TensorLayout.CONCATENATED,
        (HFTensor(f"{_MLP}.down_proj.weight", ("hidden_size", "ffn_hidden_size"), 1, "ffn_hidden_size"),),
    ),
    ParameterRow(
        Placement.DENSE_LAYER,
        f"{DECODER}.mlp.linear_fc2.bias",
        TensorLayout.REPLICATED,
        replicated_vector(f"{_MLP}.down_proj.bias", "hidden_size"),
        when="mlp_bias",
    ),
)


# With tied embeddings and several stages, Megatron keeps a copy of the embedding on the last stage and sums the
# gradients of both.
OUTPUT_ROWS = (
    ParameterRow(
        Placement.LAST_STAGE,
        "decoder.final_layernorm.weight",
        TensorLayout.REPLICATED,
        replicated_vector("model.norm.weight", "hidden_size"),
    ),
    ParameterRow(
        Placement.LAST_STAGE,
        "output_layer.weight",
        TensorLayout.VOCAB,
        (HFTensor("lm_head.weight", ("vocab_size", "hidden_size"), 0),),
        when="untied",
    ),
    ParameterRow(
        Placement.LAST_STAGE_COPY, "output_layer.weight", TensorLayout.VOCAB, (_EMBED_TOKENS,), when="tied"
    ),
)

DENSE_DECODER = (*EMBEDDING_ROWS, *ATTENTION_ROWS, *DENSE_MLP_ROWS, *OUTPUT_ROWS)
"""The whole table of a dense family. Dense families differ only in the flags that `ParameterRow.when` names."""
