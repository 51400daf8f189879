"""A rank of the tests of the Triton kernels: `kernel_worker.py FOLDER RANK WORLD_SIZE`, with TRITON_INTERPRET=1.

The interpreter must be selected before triton is imported, so the ranks run in separate processes.
"""

import pickle
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_prime.logprobs import kernels as logprob_kernels
from megatron_prime.logprobs.kernels import TritonTileMath
from tests.logprobs.kernel_cases import BLOCK, LAYER_CASES, LOGIT_CASES, NOT_FINITE, walk
from tests.logprobs.shard_scores import score_shard


def main(folder, rank, world_size):
    """Run all cases and write the results to FOLDER/resultRANK."""
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
                report["layers"][name, kernel, 1] = score_shard(alone, kernel, **case)
            report["layers"][name, kernel, world_size] = score_shard(dist.group.WORLD, kernel, **case)
    Path(folder, f"result{rank}").write_bytes(pickle.dumps(report))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
