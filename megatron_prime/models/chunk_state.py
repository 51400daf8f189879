"""The state of a model's chunks in Megatron's checkpoints, for plain torch and Transformer Engine layers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.serialization import load_sharded_metadata

from megatron_prime.models.te_layers import fill_quantized, quantized_parts


def chunk_states(chunks: Sequence[Any], written: Path | None = None) -> dict[str, Any]:
    """Return the sharded tensors of each chunk; their names in the checkpoint do not depend on the layout.

    Transformer Engine's layers have extra state, which is empty except for the scales of delayed FP8. It is left out
    otherwise, and if the checkpoint `written` has none, so that layers of either kind load both. Check `written` with
    `stored_pickles.refuse_code` before.
    """
    has_scales = any(chunk.config.fp8 and chunk.config.fp8_recipe == "delayed" for chunk in chunks)
    if has_scales and written is not None:
        has_scales = any(_is_layer_state(key) for key in load_sharded_metadata(str(written)))
    return {
        f"model{index}": {
            key: value
            for key, value in chunk.sharded_state_dict().items()
            if has_scales or not _is_layer_state(key)
        }
        for index, chunk in enumerate(chunks)
    }


def fill_chunks(chunks: Sequence[torch.nn.Module], state: dict[str, Any]) -> None:
    """Copy loaded tensors of `chunk_states` into the chunks."""
    for index, chunk in enumerate(chunks):
        loaded = state[f"model{index}"]
        missing, unexpected = chunk.load_state_dict(loaded, strict=False)
        missing = [key for key in missing if not _is_layer_state(key)]
        assert not missing and not unexpected, (missing, unexpected)
        for name, parameter in chunk.named_parameters():
            if (
                len(quantized_parts(parameter)) > 1
            ):  # held in FP8: master weights start from the loaded values
                fill_quantized(parameter, loaded[name])


def _is_layer_state(key: str) -> bool:
    return "_extra_state" in key
