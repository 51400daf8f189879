"""Weights in Megatron's format that cannot be loaded are refused by name; tests/conversion loads those that can."""

import pytest

from megatron_prime.hf.weight_files import RELEASE
from megatron_prime.models.megatron_folder import load_megatron_weights


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{RELEASE} cannot be loaded: CheckpointingException"):
        load_megatron_weights([], tmp_path / RELEASE)
