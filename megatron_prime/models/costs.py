"""Cost of a row in FLOPs: the linear layers, attention's quadratic term, and the output layer."""

from megatron_prime.hf.shape import ModelShape
from megatron_prime.models.packing import RowCosts


def row_costs(shape: ModelShape) -> RowCosts:
    """Return the costs of a model's rows for balanced packing, relative to the linear layers' work on one token.

    With n weights applied to a token in a layer, a token costs 2 n in the layer's linear parts, and causal attention
    over L tokens costs 2 L^2 * query_size (half of the scores and half of the weighted sum, 2 * L^2 * query_size each).
    They are equal at L = n / query_size. The output layer adds 2 * vocab_size * hidden_size for each scored token.
    """
    layers = [_weights_per_token(shape, layer) for layer in range(shape.num_layers)]
    weights = sum(layers)
    return RowCosts(
        attention_tokens=weights / (shape.num_layers * shape.query_size),
        output_share=shape.vocab_size * shape.hidden_size / weights,
    )


def _weights_per_token(shape: ModelShape, layer: int) -> int:
    """Return the number of weights of a layer's matrices that are applied to one token."""
    attention = 2 * shape.hidden_size * (shape.query_size + shape.kv_size)
    if not shape.has_experts(layer):
        return attention + 3 * shape.hidden_size * shape.ffn_hidden_size
    experts = 3 * shape.hidden_size * shape.moe_ffn_hidden_size * shape.num_experts_per_tok
    return attention + experts + shape.hidden_size * shape.num_experts
