"""The identity of a model folder: its architecture, tokenizer and weights, wherever the folder stands."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from megatron_prime.hf.config_json import ModelFolderError
from megatron_prime.hf.headers import weight_file_names
from megatron_prime.hf.weight_files import megatron_weights

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
NUM_SAMPLES = 16
SAMPLE_BYTES = 4096
"""Parts of a weight file that are read: two models of one shape differ almost everywhere."""


def model_identity(folder: Path) -> dict[str, str]:
    """Return a hash of each part of a model: architecture, tokenizer and weights. Reads little of large files.

    Raises:
        ModelFolderError: the folder is damaged.
    """
    try:
        megatron = megatron_weights(folder)
        weights = _safetensors(folder) if megatron is None else sorted(megatron.rglob("*"))
        return {
            "config.json": _hash_of([folder / "config.json"], whole=True),
            "tokenizer": _hash_of([folder / name for name in TOKENIZER_FILES], whole=True),
            "weights": _hash_of(weights, whole=False),
        }
    except OSError as error:
        raise ModelFolderError(folder, f"it cannot be read: {error}") from error


def _safetensors(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in weight_file_names(folder)]
    except ValueError:  # a folder from which nothing is loaded, such as one that an engine alone knows
        return sorted(folder.glob("*.safetensors"))


def _hash_of(paths: Iterable[Path], whole: bool) -> str:
    digest = hashlib.sha256()
    for path in paths:
        if not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            if whole or size <= NUM_SAMPLES * SAMPLE_BYTES:
                digest.update(file.read())
                continue
            for number in range(NUM_SAMPLES):
                file.seek(number * (size - SAMPLE_BYTES) // (NUM_SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]
