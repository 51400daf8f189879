"""A folder in which the minimal file's run can start, and its checks."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_prime.config import ConfigError, load_config
from megatron_prime.hf.config_json import ModelFolderError
from megatron_prime.preflight.checks import check_run
from tests.support.sparse_weights import write_file, write_weights

SHAPE: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "vocab_size": 100,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
}


def write_model(folder: Path, **changes) -> Path:
    """Write a model folder whose config.json is SHAPE with these changes; None removes a key."""
    folder.mkdir(exist_ok=True)
    shape = {key: value for key, value in {**SHAPE, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(shape))
    try:
        write_weights(folder)
    except ModelFolderError:  # a model that is refused: any file is as good
        write_file(folder / "model.safetensors", {"weight": (1,)})
    (folder / "tokenizer.json").write_text("{}")
    return folder


def check(*overrides: str, processes: int = 1, command: str = "train"):
    return check_run(load_config(Path("run.toml"), overrides), processes, command)


def faults_of(*overrides: str, **kwargs) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        check(*overrides, **kwargs)
    return caught.value.faults
