"""Round trips are bit-equal, also from checkpoints saved by Megatron on two ranks; mismatches are reported."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megatron_prime.conversion.to_hf import megatron_to_hf
from megatron_prime.observability.progress import Progress
from tests.conversion.conversion_worker import DENSE, MOE


def convert(source, companions, output, dtype=None, max_file_bytes=1 << 30):
    megatron_to_hf(
        source,
        companions,
        output,
        dtype=dtype,
        num_workers=1,
        max_file_bytes=max_file_bytes,
        progress=Progress(enabled=False),
    )


def tensors_of(folder):
    return {key: tensor for path in folder.glob("*.safetensors") for key, tensor in load_file(path).items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert [key for key in found if not torch.equal(found[key], expected[key])] == []


@pytest.mark.parametrize("name", DENSE + MOE)
def test_a_round_trip_is_bit_equal(name, hf_models, converted, tmp_path):
    convert(converted / name / "release", converted / name, tmp_path / "back", max_file_bytes=30_000)
    assert (tmp_path / "back" / "model.safetensors.index.json").is_file()
    assert_equal(tensors_of(tmp_path / "back"), tensors_of(hf_models[0] / name))
    generation = "generation_config.json"
    assert (tmp_path / "back" / generation).read_text() == (hf_models[0] / name / generation).read_text()


@pytest.mark.parametrize("name", DENSE + MOE)
def test_a_checkpoint_saved_by_two_tensor_parallel_ranks_is_converted(name, hf_models, megatron, tmp_path):
    convert(megatron[0] / name, hf_models[0] / name, tmp_path / "back")
    assert_equal(tensors_of(tmp_path / "back"), tensors_of(hf_models[0] / name))


def test_a_cast_equals_torchs_and_is_written_to_the_config(hf_models, converted, tmp_path):
    convert(converted / "qwen3" / "release", converted / "qwen3", tmp_path / "back", torch.bfloat16)
    expected = {key: tensor.bfloat16() for key, tensor in tensors_of(hf_models[0] / "qwen3").items()}
    assert_equal(tensors_of(tmp_path / "back"), expected)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "back").dtype == torch.bfloat16


def test_a_flipped_byte_is_detected_by_its_checksum(converted, tmp_path):
    source = shutil.copytree(converted / "qwen3" / "release", tmp_path / "release")
    path = source / "__3_0.distcp"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"release is damaged: __3_0.distcp has another checksum"):
        convert(source, converted / "qwen3", tmp_path / "back")


@pytest.mark.parametrize(
    ("name", "changes", "error"),
    [
        ("qwen3", {"model_type": "gpt2"}, "gpt2"),
        ("qwen3", {"num_hidden_layers": 3}, r"wrong shape .*linear_fc1.weight is \(4, 128, 32\) and should"),
        ("qwen3", {"attention_bias": True}, r"missing .*self_attention.linear_qkv.bias"),
        ("qwen2 tied", {"tie_word_embeddings": False}, r"missing \(1\): output_layer.weight"),
        ("qwen3", {"tie_word_embeddings": True}, r"unexpected \(1\): output_layer.weight"),
        ("qwen3", {"vocab_size": 500}, r"wrong shape \(2\): embedding.word_embeddings.weight"),
    ],
)
def test_a_mismatch_with_the_config_is_reported(name, changes, error, converted, tmp_path):
    companions = tmp_path / "companions"
    companions.mkdir()
    config = json.loads((converted / name / "config.json").read_text())
    (companions / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=error):
        convert(converted / name / "release", companions, tmp_path / "back")
    assert not (tmp_path / "back").exists()
