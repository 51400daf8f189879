"""Which folder holds the weights, and what is said of one that cannot be loaded."""

import pytest

from megatron_prime.models.megatron_folder import RELEASE, TRACKER, load_megatron_weights, megatron_weights


@pytest.mark.parametrize(("word", "name"), [("release", "release"), ("500\n", "iter_0000500")])
def test_the_tracker_names_the_folder(word, name, tmp_path):
    (tmp_path / TRACKER).write_text(word)
    with pytest.raises(ValueError, match=f"{name} holds no checkpoint"):
        megatron_weights(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / ".metadata").touch()
    assert megatron_weights(tmp_path) == tmp_path / name


def test_an_hf_folder_is_of_another_kind(tmp_path):
    assert megatron_weights(tmp_path) is None


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{RELEASE} cannot be loaded: CheckpointingException"):
        load_megatron_weights([], tmp_path / RELEASE)
