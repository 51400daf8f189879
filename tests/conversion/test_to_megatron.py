"""A converted checkpoint loads in Megatron in every layout, bit by bit, and mismatches are reported."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_prime.conversion.to_megatron import hf_to_megatron
from megatron_prime.hf.weight_files import megatron_weights
from megatron_prime.observability.progress import Progress
from megatron_prime.training.checkpoint.manifest import faults, read_manifest
from tests.conversion.conversion_worker import LOADED
from tests.support.layout_worker import hf_weights, whole_tensors

CASES = [(layout, name) for layout, names in LOADED.items() for name in names]


def convert(source, output):
    hf_to_megatron(source, output, num_workers=1, max_file_bytes=1 << 20, progress=Progress(enabled=False))


@pytest.mark.parametrize(("layout", "name"), CASES)
def test_megatron_loads_every_weight_in_any_layout(layout, name, hf_models, megatron):
    expected = hf_weights(hf_models[1][name])
    whole = whole_tensors([report[layout, name] for report in megatron[1]], expected)
    for key, tensor in expected.items():
        assert torch.equal(whole[key], tensor), key


def test_the_folder_is_complete_and_its_checksums_match(hf_models, converted):
    folder = converted / "qwen3"
    weights = megatron_weights(folder)
    assert weights == folder / "release"
    entries = read_manifest(weights)
    assert len([name for name in entries if name.endswith(".distcp")]) > 5
    assert faults(weights, entries) == []
    config = json.loads((folder / "config.json").read_text())
    assert config == json.loads((hf_models[0] / "qwen3" / "config.json").read_text())
    assert not [path for path in converted.iterdir() if path.name.startswith(".")]


@pytest.fixture
def source(hf_models, tmp_path):
    return shutil.copytree(hf_models[0] / "qwen3", tmp_path / "source")


def change(source, tensors=None, config=None):
    if tensors is not None:
        path = source / "model.safetensors"
        content = load_file(path)
        tensors(content)
        save_file(content, path)
    if config is not None:
        path = source / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))


@pytest.mark.parametrize(
    ("tensors", "config", "error"),
    [
        (None, {"model_type": "mamba"}, "mamba"),
        (lambda t: t.pop("model.norm.weight"), None, r"missing \(1\): model.norm.weight"),
        (lambda t: t.update(extra=torch.zeros(2)), None, r"unexpected \(1\): extra"),
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(3)}),
            None,
            r"model.norm.weight is \(3,\) and should be \(32,\)",
        ),
        (
            lambda t: t.update(
                {"model.layers.1.mlp.up_proj.weight": t["model.layers.1.mlp.up_proj.weight"].half()}
            ),
            None,
            r"model.layers.1.mlp.up_proj.weight is torch.float16",
        ),
    ],
)
def test_a_mismatch_with_the_config_is_reported(tensors, config, error, source, tmp_path):
    change(source, tensors, config)
    with pytest.raises(ValueError, match=error):
        convert(source, tmp_path / "output")
    assert not (tmp_path / "output").exists()
