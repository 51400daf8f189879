"""A folder that holds a model in Megatron's own format beside config.json and tokenizer, as `hf_to_megatron` writes it.

model/config.json, tokenizer ...
model/latest_checkpointed_iteration.txt     the name that Megatron-LM looks for; says "release" or an iteration
model/release/ (model/iter_0000500/)        format torch_dist

`model.path` of a run may be such a folder.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from torch.distributed.checkpoint.api import CheckpointException  # noqa: TID251 - a name, no communication

from megatron_prime.models.chunk_state import chunk_states, fill_chunks

TRACKER = "latest_checkpointed_iteration.txt"
RELEASE = "release"


def megatron_weights(folder: Path) -> Path | None:
    """Where the weights of such a folder are; None for a folder of another kind.

    Raises ValueError when the tracker names a folder that is not there.
    """
    tracker = folder / TRACKER
    if not tracker.is_file():
        return None
    word = tracker.read_text(encoding="utf-8").strip()
    weights = folder / (f"iter_{int(word):07d}" if word.isdigit() else word)
    if not (weights / ".metadata").is_file():
        raise ValueError(f"{tracker} names {word!r}, but {weights} holds no checkpoint of format torch_dist")
    return weights


def load_megatron_weights(chunks: Sequence[torch.nn.Module], weights: Path) -> None:
    """Fill this rank's chunks of a model from such a folder, whatever layout wrote it. Collective over all ranks.

    Raises ValueError when a tensor is missing or of another shape, or a file is damaged.
    """
    try:
        state: Any = dist_checkpointing.load(chunk_states(chunks, weights), str(weights))
    except (CheckpointingException, CheckpointException) as error:
        causes = getattr(error, "failures", None) or {0: (error, None)}
        cause, _ = next(iter(causes.values()))
        raise ValueError(f"{weights} cannot be loaded: {type(cause).__name__}: {cause}") from error
    fill_chunks(chunks, state)
