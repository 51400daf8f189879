"""A Megatron checkpoint that cannot be loaded is refused by name; tests/conversion loads valid ones."""

import pytest

from megatron_prime.hf.weight_files import RELEASE
from megatron_prime.models.megatron_folder import load_megatron_weights


def test_a_folder_that_is_not_a_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{RELEASE} cannot be loaded: CheckpointingException"):
        load_megatron_weights([], tmp_path / RELEASE)
