"""Tiny models of every family, converted once per session, and the checkpoints that Megatron saves of them."""

import pytest

from megatron_prime.conversion.to_megatron import hf_to_megatron
from megatron_prime.observability.progress import Progress
from tests.conversion import conversion_worker
from tests.support.distributed_runner import run_distributed
from tests.support.tiny_models import save_tiny_model

FAMILIES = ("qwen2 tied", "qwen3", "llama rope", "qwen3 moe", "qwen3 moe mixed", "mixtral")


@pytest.fixture(scope="session")
def hf_models(tmp_path_factory):
    """(folder of the HF checkpoints, name -> HF model)."""
    root = tmp_path_factory.mktemp("hf")
    return root, {name: save_tiny_model(name, root / name) for name in FAMILIES}


@pytest.fixture(scope="session")
def converted(hf_models, tmp_path_factory):
    """Folder of the converted checkpoints, in data files of about 20 kB."""
    root = tmp_path_factory.mktemp("megatron")
    for name in FAMILIES:
        hf_to_megatron(
            hf_models[0] / name,
            root / name,
            num_workers=1,
            max_file_bytes=20_000,
            progress=Progress(enabled=False),
        )
    return root


@pytest.fixture(scope="session")
def megatron(hf_models, converted, tmp_path_factory):
    """(folder of checkpoints saved by Megatron, weights that each of two ranks loaded from converted checkpoints)."""
    saved = tmp_path_factory.mktemp("saved")
    loaded = run_distributed(conversion_worker.load_and_save, 2, hf_models[0], converted, saved)
    return saved, loaded
