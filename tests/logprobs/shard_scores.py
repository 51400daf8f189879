"""Forward and backward pass of one rank's shard of an output layer, for workers that compare implementations."""

import torch

from megatron_prime.logprobs import output_layer as vocab_logprobs
from megatron_prime.logprobs.output_layer import VocabShard, output_logprobs


def score_shard(
    group,
    kernel,
    hidden_RH,
    weight_VH,
    labels_R,
    num_real,
    upstream_2R,
    temperature,
    chunk_tokens,
    gathered,
    tile_columns,
):
    """Return log-probs, entropy and local gradients of an output layer that is sharded over the ranks of a group."""
    vocab_logprobs.MIN_COLUMNS = tile_columns
    vocab_logprobs.TILE_ELEMENTS["cpu"] = tile_columns * chunk_tokens
    rows = len(weight_VH) // group.size()
    first_row = group.rank() * rows
    hidden_RH = hidden_RH.clone().requires_grad_()
    local_VH = weight_VH[first_row : first_row + rows].clone().requires_grad_()
    shard = VocabShard(group, first_row, max(0, min(rows, num_real - first_row)), gathered)
    logprobs_R, entropy_R = output_logprobs(
        hidden_RH, local_VH, labels_R, shard, temperature, chunk_tokens, kernel
    )
    (upstream_2R * torch.stack([logprobs_R, entropy_R])).sum().backward()
    return {
        "logprobs": logprobs_R.detach(),
        "entropy": entropy_R.detach(),
        "grad_hidden": hidden_RH.grad,
        "grad_weight": local_VH.grad,
    }
