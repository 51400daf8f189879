"""A model is recognized wherever its folder stands, and every change of it is noticed."""

import json
import shutil

import pytest

from megatron_prime.hf.config_json import ModelFolderError
from megatron_prime.hf.identity import model_identity
from megatron_prime.hf.weight_files import RELEASE, TRACKER


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    (folder / RELEASE).mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model-1.safetensors").write_bytes(bytes(range(256)) * 1000)
    (folder / "model-2.safetensors").write_bytes(b"small")
    (folder / RELEASE / ".metadata").write_bytes(b"description")
    (folder / RELEASE / "__0_0.distcp").write_bytes(b"shard")
    return folder


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


CHANGES = {
    "architecture": (lambda folder: (folder / "config.json").write_text("{}"), "config.json"),
    "tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{ }"), "tokenizer"),
    "chat template": (lambda folder: (folder / "chat_template.jinja").write_text("{}"), "tokenizer"),
    "begin of the weights": (lambda folder: flip(folder / "model-1.safetensors", 0), "weights"),
    "end of the weights": (lambda folder: flip(folder / "model-1.safetensors", -1), "weights"),
    "small file": (lambda folder: flip(folder / "model-2.safetensors", 2), "weights"),
    "file lost": (lambda folder: (folder / "model-2.safetensors").unlink(), "weights"),
    "file longer": (lambda folder: (folder / "model-2.safetensors").write_bytes(b"smallest"), "weights"),
    "Megatron's format": (lambda folder: (folder / TRACKER).write_text(RELEASE), "weights"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_one_part_changes_its_hash_alone(change, model):
    before = model_identity(model)
    do, part = CHANGES[change]
    do(model)
    after = model_identity(model)
    assert [name for name in before if before[name] != after[name]] == [part]


def test_a_copy_elsewhere_is_the_same_model(model, tmp_path):
    shutil.copytree(model, tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "README.md").write_text("not a part")
    assert model_identity(tmp_path / "elsewhere") == model_identity(model)


def test_files_that_the_index_does_not_name_are_no_part(model):
    weight_map = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    before = model_identity(model)
    for other in ("consolidated.safetensors", "model.safetensors"):
        (model / other).write_bytes(b"other")
    assert model_identity(model) == before


def test_a_damaged_folder_is_named(model):
    (model / TRACKER).write_text("gone")
    with pytest.raises(ModelFolderError, match="gone"):
        model_identity(model)
