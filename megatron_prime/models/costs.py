"""Cost of a row in FLOPs: the linear layers, attention's quadratic term, and the output layer."""

from megatron_prime.hf.shape import ModelShape
from megatron_prime.models.packing import RowCosts


def row_costs(shape: ModelShape) -> RowCosts:
    """Return the costs of a model's rows for balanced packing, relative to the linear layers' work on one token.

    With n weights applied to a token in a layer, a token costs 2 n in the layer's linear parts, and causal attention
    over L tokens costs 2 L^2 * query_size (half of the scores and half of the weighted sum, 2 * L^2 * query_size each).
    They are equal at L = n / query_size. The output layer adds 2 * vocab_size * hidden_size for each scored token.
    """
    layers = [shape.weights_per_token(layer) for layer in range(shape.num_layers)]
    weights = sum(layers)
    return RowCosts(
        attention_tokens=weights / (shape.num_layers * shape.query_size),
        output_share=shape.vocab_size * shape.hidden_size / weights,
    )
