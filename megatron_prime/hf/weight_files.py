"""Find out in which format a model folder holds its weights. Standard library only.

A folder holds them as safetensors, or in Megatron's own format beside config.json and the tokenizer, as
`megatron-prime hf-to-megatron` writes it:

    model/config.json, tokenizer ...
    model/latest_checkpointed_iteration.txt     the name that Megatron-LM looks for: "release" or an iteration
    model/release/ (model/iter_0000500/)        a checkpoint of format torch_dist
"""

from __future__ import annotations

from pathlib import Path

from megatron_prime.hf.config_json import ModelFolderError
from megatron_prime.hf.headers import INDEX_NAME, SINGLE_NAME, misfit, other_head, read_headers
from megatron_prime.hf.mapping import hf_tensors
from megatron_prime.hf.shape import ModelShape

TRACKER = "latest_checkpointed_iteration.txt"
"""File in a model folder whose content names the folder of the weights in Megatron's format."""
RELEASE = "release"
"""Content of the tracker for weights that were converted rather than saved at an iteration."""


def megatron_weights(folder: Path) -> Path | None:
    """Return the folder of a model's weights in Megatron's format, or None if it holds none.

    Raises:
        ModelFolderError: The tracker names a folder that is not a checkpoint of format torch_dist.
    """
    tracker = folder / TRACKER
    if not tracker.is_file():
        return None
    word = tracker.read_text(encoding="utf-8").strip()
    # Megatron-LM names the folder of an iteration with seven digits.
    weights = folder / (f"iter_{int(word):07d}" if word.isdigit() else word)
    if not (weights / ".metadata").is_file():
        raise ModelFolderError(
            folder, f"{TRACKER} names {word!r}, but {weights} holds no checkpoint of format torch_dist"
        )
    return weights


def loaded_megatron_weights(folder: Path) -> Path | None:
    """Return the folder of weights that training loads in Megatron's format, or None if it loads safetensors.

    Raises:
        ModelFolderError: There are both, of which an engine would read the others; or as `megatron_weights`.
    """
    weights = megatron_weights(folder)
    both = [name for name in (INDEX_NAME, SINGLE_NAME) if weights is not None and (folder / name).is_file()]
    if weights is not None and both:
        raise ModelFolderError(
            folder,
            f"it holds weights in two formats, {both[0]} and {weights.name} of {TRACKER}: remove one of them",
        )
    return weights


def check_weights(folder: Path, shape: ModelShape | None) -> None:
    """Raise ModelFolderError unless the folder holds weights that training can load.

    Their names, shapes and dtypes are compared with a model of this shape, unless it is None because it is unknown.
    """
    if loaded_megatron_weights(folder) is not None:
        return
    if not any(folder.glob("*.safetensors")):
        raise ModelFolderError(
            folder, "no *.safetensors file; convert other weight formats to safetensors first"
        )
    try:
        headers = read_headers(folder)
    except ValueError as error:
        raise ModelFolderError(folder, str(error)) from error
    if shape is None:
        return
    expected = hf_tensors(shape)
    fault = misfit(headers, expected) or other_head(folder, headers, expected)
    if fault:
        raise ModelFolderError(folder, f"the weights do not fit config.json; {fault}")
