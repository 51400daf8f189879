"""The format of a folder's weights, and the folders that are refused."""

import pytest

from megatron_prime.hf.config_json import ModelFolderError
from megatron_prime.hf.weight_files import TRACKER, check_weights, megatron_weights


@pytest.mark.parametrize(("word", "name"), [("release", "release"), ("500\n", "iter_0000500")])
def test_the_tracker_names_the_folder(word, name, tmp_path):
    (tmp_path / TRACKER).write_text(word)
    with pytest.raises(ValueError, match=f"{name} holds no checkpoint"):
        megatron_weights(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / ".metadata").touch()
    assert megatron_weights(tmp_path) == tmp_path / name
    check_weights(tmp_path)


def test_an_hf_folder_is_of_another_format(tmp_path):
    (tmp_path / "model.safetensors").touch()
    assert megatron_weights(tmp_path) is None
    check_weights(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelFolderError, match=r"no \*\.safetensors file"):
        check_weights(tmp_path)
