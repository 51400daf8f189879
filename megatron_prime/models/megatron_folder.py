"""Load the weights of a model folder that holds them in Megatron's own format (see `hf.weight_files`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from torch.distributed.checkpoint.api import CheckpointException  # noqa: TID251 - an exception, no communication

from megatron_prime.models.chunk_state import chunk_states, fill_chunks
from megatron_prime.models.stored_pickles import refuse_code
from megatron_prime.parallel.collectives import on_first_rank
from megatron_prime.parallel.topology import Topology


def load_megatron_weights(chunks: Sequence[torch.nn.Module], weights: Path, topology: Topology) -> None:
    """Fill this rank's chunks from a torch_dist checkpoint, whatever layout wrote it. Collective over all ranks.

    Args:
        chunks: This rank's chunks of the model.
        weights: The checkpoint, as `hf.weight_files.megatron_weights` returns it.
        topology: The layout.

    Raises ValueError when a tensor is missing or of another shape, or a file is damaged.
    """
    on_first_rank(lambda: refuse_code(weights), topology)
    try:
        state: Any = dist_checkpointing.load(chunk_states(chunks, weights), str(weights))
    except (CheckpointingException, CheckpointException) as error:
        causes = getattr(error, "failures", None) or {0: (error, None)}
        cause, _ = next(iter(causes.values()))
        raise ValueError(f"{weights} cannot be loaded: {type(cause).__name__}: {cause}") from error
    fill_chunks(chunks, state)
