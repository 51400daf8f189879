"""Sizes that fit together, and those that do not."""

import json

import pytest

from megatron_prime.hf.config_json import ModelFolderError
from megatron_prime.hf.shape import padded_vocab_size, read_shape
from tests.support.hf_shapes import VARIANTS, make_config, make_shape


def test_padded_vocab_size():
    assert padded_vocab_size(151936, 128, 1) == 151936
    assert padded_vocab_size(151936, 128, 8) == 152576
    assert make_shape(vocab_divisor=128).padded_vocab_size(2) == 256


def test_layers_have_experts_unless_they_are_listed_as_dense():
    assert [make_shape("qwen3_moe_mixed").has_experts(layer) for layer in range(2)] == [True, False]
    assert not make_shape("llama").has_experts(0) and not make_shape("llama").is_moe


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        ("llama", {"num_query_groups": 4}, "not a multiple of the KV heads"),
        ("llama", {"num_layers": 0}, "num_layers must be a positive integer, got 0"),
        ("llama", {"num_experts": 4}, "num_experts is 4, which a llama model cannot have"),
        ("mixtral", {"num_experts": 0}, "num_experts is 0"),
        ("mixtral", {"num_experts_per_tok": 5}, "4 experts of 20 columns, 5 for a token"),
        ("qwen3_moe", {"moe_ffn_hidden_size": 0}, "4 experts of 0 columns"),
        ("qwen3_moe", {"dense_layers": (0, 1)}, "must be some, not all, of the model's 2 layers"),
        ("qwen3_moe", {"dense_layers": (2,)}, "must be some, not all"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(variant, changes, message):
    with pytest.raises(ValueError, match=message):
        make_shape(variant, **changes)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_shape_is_read_from_a_folder(variant, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(make_config(variant)))
    assert read_shape(tmp_path) == make_shape(variant, vocab_divisor=128)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "mamba"}, "unknown model_type 'mamba'"),
        ({"num_hidden_layers": "two"}, "wrong type|must be a positive integer"),
        ({"rope_parameters": "yarn"}, "wrong type"),
    ],
)
def test_a_folder_with_another_model_is_refused_by_name(changes, reason, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(make_config("qwen3", **changes)))
    with pytest.raises(ModelFolderError, match=reason) as caught:
        read_shape(tmp_path)
    assert str(caught.value) == f"{tmp_path}: {caught.value.reason}"
