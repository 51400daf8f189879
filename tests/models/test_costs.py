"""Row costs equal a count of every multiplication of the layers."""

from dataclasses import replace

import pytest

from megatron_prime.models.costs import row_costs
from tests.support.hf_shapes import VARIANTS, make_shape


def flops(shape, num_tokens, num_scored):
    """Count the multiplications and additions of a forward pass, matrix by matrix."""
    total = 0
    for layer in range(shape.num_layers):
        for position in range(num_tokens):
            matrices = [
                (shape.hidden_size, shape.query_size),
                (shape.hidden_size, shape.kv_size),
                (shape.hidden_size, shape.kv_size),
                (shape.query_size, shape.hidden_size),
            ]
            ffn, copies = shape.ffn_hidden_size, 1
            if shape.has_experts(layer):
                ffn, copies = shape.moe_ffn_hidden_size, shape.num_experts_per_tok
                matrices.append((shape.hidden_size, shape.num_experts))
            matrices += [(shape.hidden_size, ffn)] * 3 * copies
            total += sum(2 * rows * columns for rows, columns in matrices)
            # Query times key, and weight times value. Causal attention over n tokens counts as n^2 / 2 pairs of tokens.
            total += 2 * 2 * (position + 0.5) * shape.query_size
    return total + num_scored * 2 * shape.vocab_size * shape.hidden_size


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("num_tokens", "num_scored"), [(1, 0), (7, 3), (64, 64)])
def test_costs_are_flops(name, num_tokens, num_scored):
    shape = make_shape(name)
    per_token = flops(shape, 1, 0) - shape.num_layers * 2 * shape.query_size
    costs = row_costs(shape)
    expected = flops(shape, num_tokens, num_scored) / per_token
    assert costs(num_tokens, num_scored) == pytest.approx(expected, rel=1e-12)


def test_attention_has_a_smaller_share_of_the_cost_in_a_wider_model():
    shape = make_shape("llama")
    wider = replace(shape, ffn_hidden_size=8 * shape.ffn_hidden_size)
    assert row_costs(wider).attention_tokens > row_costs(shape).attention_tokens
