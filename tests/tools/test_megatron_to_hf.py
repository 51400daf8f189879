"""The search for weights and config; test_hf_to_megatron and tests/conversion test the rest."""

import pytest

from tools.megatron_to_hf import resolve_folders


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model" / "release").mkdir(parents=True)
    (tmp_path / "model" / "release" / ".metadata").touch()
    (tmp_path / "model" / "latest_checkpointed_iteration.txt").write_text("release")
    return tmp_path / "model"


def test_the_config_beside_the_weights_is_found(folder):
    with pytest.raises(ValueError, match="name the HF folder of its model with --hf"):
        resolve_folders(folder, None)
    (folder / "config.json").touch()
    assert resolve_folders(folder, None) == (folder / "release", folder)
    assert resolve_folders(folder / "release", None) == (folder / "release", folder)


def test_the_hf_option_takes_precedence(folder, tmp_path):
    (folder / "config.json").touch()
    (tmp_path / "config.json").touch()
    assert resolve_folders(folder, tmp_path) == (folder / "release", tmp_path)
