"""Where weights and config are looked for; the rest is in test_hf_to_megatron and tests/conversion."""

import pytest

from tools.megatron_to_hf import places


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model" / "release").mkdir(parents=True)
    (tmp_path / "model" / "release" / ".metadata").touch()
    (tmp_path / "model" / "latest_checkpointed_iteration.txt").write_text("release")
    return tmp_path / "model"


def test_the_config_beside_the_weights_is_found(folder):
    with pytest.raises(ValueError, match="name the HF folder of its model with --hf"):
        places(folder, None)
    (folder / "config.json").touch()
    assert places(folder, None) == (folder / "release", folder)
    assert places(folder / "release", None) == (folder / "release", folder)


def test_a_config_that_is_named_comes_first(folder, tmp_path):
    (folder / "config.json").touch()
    (tmp_path / "config.json").touch()
    assert places(folder, tmp_path) == (folder / "release", tmp_path)
