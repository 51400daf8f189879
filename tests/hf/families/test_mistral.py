"""Mistral: windows of attention, and heads whose size is not that of the hidden states."""

import pytest

from megatron_prime.hf.shape import ModelShape
from tests.support.hf_shapes import make_config


@pytest.mark.parametrize("window", [None, 63])
def test_a_window_shorter_than_the_longest_sequence_is_refused(window):
    """Without the key, transformers uses a window of 4096."""
    positions = 64 if window else 4097
    config = make_config("mistral", sliding_window=window, max_position_embeddings=positions)
    with pytest.raises(ValueError, match="fit into the window are: set sliding_window"):
        ModelShape.from_hf_config(config)


@pytest.mark.parametrize("window", [None, 64])
def test_no_window_and_one_that_holds_the_longest_sequence_are_the_same(window):
    config = make_config("mistral") | {"sliding_window": window}
    assert ModelShape.from_hf_config(config) == ModelShape.from_hf_config(make_config("mistral"))


def test_heads_are_as_large_as_the_file_says():
    nemo = {"hidden_size": 5120, "num_attention_heads": 32, "num_key_value_heads": 8}
    assert ModelShape.from_hf_config(make_config("mistral", **nemo, head_dim=128)).head_dim == 128
    assert ModelShape.from_hf_config(make_config("mistral", **nemo, head_dim=None)).head_dim == 160
