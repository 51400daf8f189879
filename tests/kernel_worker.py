"""One rank of the tests of the Triton kernels: `kernel_worker.py FOLDER RANK WORLD_SIZE`, with TRITON_INTERPRET=1.

The interpreter must be chosen before triton is imported, so these ranks are processes of their own.
"""

import pickle
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from kernel_cases import BLOCK, LAYER_CASES, LOGIT_CASES, NOT_FINITE, walk

from megatron_prime.parallel import logprob_kernels, vocab_logprobs
from megatron_prime.parallel.logprob_kernels import TritonTileMath
from megatron_prime.parallel.vocab_logprobs import VocabShard, output_logprobs


def main(folder, rank, world_size):
    """Every case, written to FOLDER/resultRANK."""
    torch.set_num_threads(1)
    logprob_kernels.COLUMNS_PER_BLOCK = BLOCK
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    alone = [dist.new_group([member]) for member in range(world_size)][rank]
    report = {"layers": {}}
    if rank == 0:
        cases = LOGIT_CASES | {"not finite": NOT_FINITE}
        report["logits"] = {name: walk(TritonTileMath, **case) for name, case in cases.items()}
    for name, case in LAYER_CASES.items():
        for kernel in ("triton", "torch"):
            if rank == 0:
                report["layers"][name, kernel, 1] = score(alone, kernel, **case)
            report["layers"][name, kernel, world_size] = score(dist.group.WORLD, kernel, **case)
    Path(folder, f"result{rank}").write_bytes(pickle.dumps(report))
    dist.barrier()
    dist.destroy_process_group()


def score(
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
    """Values and gradients of a whole output layer, of which the group's ranks hold a part each."""
    vocab_logprobs.FEWEST_COLUMNS = tile_columns
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


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
