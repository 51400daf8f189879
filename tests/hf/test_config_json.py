"""The config.json of every family as transformers writes it, and the configs and folders that are refused."""

import dataclasses
from pathlib import Path

import pytest
import transformers

from megatron_prime.hf.config_json import ModelFolderError, read_config_json
from megatron_prime.hf.shape import ModelShape
from tests.support.hf_shapes import VARIANTS, make_config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "gpt2"},
            r"unknown model_type 'gpt2'.*llama, mistral, mixtral, qwen2, qwen3, qwen3_moe",
        ),
        ({"model_type": None}, "unknown model_type None"),
        ({"vocab_size": None, "rms_norm_eps": None}, "lacks vocab_size, rms_norm_eps"),
        ({"model_type": "qwen3", "head_dim": None}, "lacks head_dim"),
        ({"model_type": "qwen2", "num_key_value_heads": None}, "lacks num_key_value_heads"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "sliding window"),
        ({"model_type": "mistral"}, "sliding window"),
        ({"model_type": "mistral", "sliding_window": 63}, "sliding window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding window"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized"),
        ({"head_dim": None, "hidden_size": 13}, r"hidden_size \(13\)"),
        ({"num_key_value_heads": 4}, "not a multiple of the KV heads"),
        ({"num_hidden_layers": 0}, "num_layers must be a positive integer, got 0"),
    ],
)
def test_an_unsupported_config_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelShape.from_hf_config(make_config(**changes))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_config_written_by_transformers_is_read(variant, tmp_path):
    config = make_config(variant)
    hf_config = transformers.AutoConfig.for_model(config.pop("model_type"), **config, rope_theta=12345.0)
    assert ModelShape.from_hf_config(hf_config.to_dict()).rope_theta == 12345.0
    assert dataclasses.replace(
        ModelShape.from_hf_config(hf_config.to_dict()),
        rope_theta=1e6 if variant == "mixtral" else 10000.0,  # what transformers assumes without one
    ) == ModelShape.from_hf_config(make_config(variant))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no config.json"),
        ("{", "config.json is not valid JSON"),
        (b"\xff", "config.json is not valid JSON"),
        ("[]", "config.json does not hold an object"),
    ],
)
def test_a_folder_without_a_readable_config_is_refused(content, reason, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ModelFolderError, match=reason) as caught:
        read_config_json(tmp_path)
    assert caught.value.folder == tmp_path


def test_a_path_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for name, reason in (("file", "not a folder"), ("nowhere", "no such folder")):
        with pytest.raises(ModelFolderError, match=reason):
            read_config_json(tmp_path / name)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B"),
        ("meta-llama/Llama-3.1-8B-Instruct/", "meta-llama/Llama-3.1-8B-Instruct"),
        ("https://huggingface.co/PRIME-RL/Eurus-2-7B-SFT", "PRIME-RL/Eurus-2-7B-SFT"),
        ("hf://Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B"),
        ("./Qwen/../Qwen2.5-7B", None),
        ("../models/a", None),
        ("/models/Qwen", None),
        ("models", None),
        ("a/b/c", None),
    ],
)
def test_a_name_of_the_hub_is_answered_with_how_to_download_it(path, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFolderError, match="no such folder") as caught:
        read_config_json(Path(path))
    assert ("hf download" in str(caught.value)) == (name is not None)
    assert name is None or f"`hf download {name} --local-dir {name}`" in str(caught.value)


@pytest.mark.parametrize(
    ("file", "hint"),
    [
        ("adapter_config.json", ", and it holds an adapter: merge it"),
        ("checkpoint-100/config.json", r", such as .*checkpoint-100$"),
        ("snapshots/0123abcd/config.json", r", such as .*snapshots/0123abcd$"),
        ("other/file.json", "checkpoint$"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_recognised(file, hint, tmp_path):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("{}")
    with pytest.raises(ModelFolderError, match=f"no config.json; this must be the folder of a .*{hint}"):
        read_config_json(tmp_path)


def test_the_content_is_returned(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert read_config_json(tmp_path) == {"model_type": "llama"}
