"""A Megatron checkpoint that cannot be loaded is refused by name; tests/conversion loads valid ones."""

import pytest
import torch

from megatron_prime.hf.weight_files import RELEASE
from megatron_prime.models.megatron_folder import load_megatron_weights
from megatron_prime.parallel.platform import Platform
from megatron_prime.parallel.topology import Topology

TOPOLOGY = Topology(
    Platform(torch.device("cpu"), "gloo", torch.float32, timeout=None), 0, 1, 1, 0, 1, 0, 1, 0, False
)


def test_a_folder_that_is_not_a_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{RELEASE} cannot be loaded: CheckpointingException"):
        load_megatron_weights([], tmp_path / RELEASE, TOPOLOGY)


def test_a_folder_with_code_is_refused_before_megatron_reads_it(tmp_path):
    (tmp_path / "common.pt").write_bytes(b"cposix\nsystem\n(X\x05\x00\x00\x00falsetR.")
    with pytest.raises(
        ValueError, match=r"common\.pt cannot be loaded safely \(UnpicklingError: it holds more than"
    ):
        load_megatron_weights([], tmp_path, TOPOLOGY)
