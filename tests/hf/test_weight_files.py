"""The format of a folder's weights, and the folders that are refused."""

import dataclasses
import json

import pytest

from megatron_prime.hf.checkpoint import HFCheckpointReader
from megatron_prime.hf.config_json import ModelFolderError
from megatron_prime.hf.mapping import hf_tensors
from megatron_prime.hf.shape import ModelShape
from megatron_prime.hf.weight_files import TRACKER, check_weights, loaded_megatron_weights, megatron_weights
from tests.preflight.workspace import SHAPE as CONFIG
from tests.support.sparse_weights import write_file

SHAPE = ModelShape.from_hf_config(CONFIG)


@pytest.mark.parametrize(("word", "name"), [("release", "release"), ("500\n", "iter_0000500")])
def test_the_tracker_names_the_folder(word, name, tmp_path):
    (tmp_path / TRACKER).write_text(word)
    with pytest.raises(ValueError, match=f"{name} holds no checkpoint"):
        megatron_weights(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / ".metadata").touch()
    assert megatron_weights(tmp_path) == tmp_path / name
    check_weights(tmp_path, SHAPE)


def test_an_hf_folder_is_of_another_format(tmp_path):
    write_file(tmp_path / "model.safetensors", hf_tensors(SHAPE))
    assert megatron_weights(tmp_path) is None
    check_weights(tmp_path, SHAPE)


def test_weights_of_another_model_and_damaged_ones_are_refused(tmp_path):
    shapes = hf_tensors(SHAPE)
    file = write_file(tmp_path / "model.safetensors", shapes | {"model.norm.weight": (31,)})
    with pytest.raises(
        ModelFolderError, match=r"do not fit config.json; wrong shape \(1\): model.norm.weight"
    ):
        check_weights(tmp_path, SHAPE)
    check_weights(tmp_path, None)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ModelFolderError, match="not a complete safetensors file: 1 of "):
        check_weights(tmp_path, None)


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelFolderError, match=r"no \*\.safetensors file"):
        check_weights(tmp_path, SHAPE)


def test_weights_in_two_formats_are_refused(tmp_path):
    (tmp_path / TRACKER).write_text("release")
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / ".metadata").touch()
    assert loaded_megatron_weights(tmp_path) == tmp_path / "release"
    write_file(tmp_path / "model.safetensors", hf_tensors(SHAPE))
    with pytest.raises(ModelFolderError, match=r"in two formats, model\.safetensors and release"):
        check_weights(tmp_path, SHAPE)


@pytest.mark.parametrize("place", [0, 1, 37, -2])
def test_a_head_that_differs_in_one_number_is_another_one(place, tmp_path):
    tied = dataclasses.replace(SHAPE, tied=True)
    shapes = hf_tensors(tied)
    shapes = {"lm_head.weight": shapes["model.embed_tokens.weight"], **shapes}
    file = write_file(tmp_path / "model.safetensors", shapes)
    check_weights(tmp_path, tied)
    data = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    size = 2 * SHAPE.vocab_size * SHAPE.hidden_size
    data[start + (place % size)] ^= 1
    file.write_bytes(data)
    with pytest.raises(ModelFolderError, match=r"lm_head\.weight has other values"):
        check_weights(tmp_path, tied)


def test_a_head_of_another_dtype_is_refused(tmp_path):
    tied = dataclasses.replace(SHAPE, tied=True)
    shapes = hf_tensors(tied)
    names = {
        "1.safetensors": shapes,
        "2.safetensors": {"lm_head.weight": shapes["model.embed_tokens.weight"]},
    }
    for (file, tensors), dtype in zip(names.items(), ("BF16", "F32"), strict=True):
        write_file(tmp_path / file, tensors, dtype)
    weight_map = {tensor: file for file, tensors in names.items() for tensor in tensors}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelFolderError, match=r"lm_head\.weight has another dtype, F32 instead of BF16"):
        check_weights(tmp_path, tied)


def test_a_head_of_its_own_beside_tied_embeddings_is_refused(tmp_path):
    tied = dataclasses.replace(SHAPE, tied=True)
    shapes = hf_tensors(tied)
    size = shapes["model.embed_tokens.weight"]
    assert "lm_head.weight" not in shapes
    file = write_file(tmp_path / "model.safetensors", shapes | {"lm_head.weight": size})
    check_weights(tmp_path, tied)  # A copy, as many tools write it.
    file.write_bytes(file.read_bytes()[: -2 * size[1]] + b"\1" * (2 * size[1]))  # its last row
    with pytest.raises(
        ModelFolderError, match=r"lm_head\.weight has other values: set tie_word_embeddings to false"
    ):
        check_weights(tmp_path, tied)
    with pytest.raises(ValueError, match=r"lm_head\.weight has other values"):
        HFCheckpointReader(tmp_path).check_against(shapes)
    write_file(tmp_path / "model.safetensors", shapes | {"lm_head.weight": (size[0] + 1, size[1])})
    with pytest.raises(ModelFolderError, match=r"lm_head\.weight has other values"):
        check_weights(tmp_path, tied)
