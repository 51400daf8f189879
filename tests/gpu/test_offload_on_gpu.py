"""Offloading on a GPU is bit-exact and free of races between streams; another process can map its shared memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_prime.engines.sglang.loader import staging
from megatron_prime.engines.sglang.weights.shared_buffer import SharedBuffer
from tests.gpu import gpu_worker
from tests.support.distributed_runner import run_distributed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]
ANSWER = """
import json, sys
import torch
from staging import map_staging
memory = map_staging(json.loads(sys.argv[1]))
half = len(memory) // 2
for line in sys.stdin:
    index = int(line)
    mine = memory[index % 2 * half :][:half]
    print(int(mine.sum(dtype=torch.int64)), flush=True)
    mine.fill_(index)
    if mine.is_cuda:
        torch.cuda.synchronize()
    print("taken", flush=True)
"""


def hand_over(device, num_bytes=1 << 22, num_rounds=5):
    """Fill halves in turn, let another process sum and overwrite them; return (sums, values that it wrote)."""
    buffer = SharedBuffer(num_bytes, torch.device(device))
    folder = str(Path(staging.__file__).parent)
    child = subprocess.Popen(
        [sys.executable, "-c", ANSWER, json.dumps(buffer.handle)],
        env=os.environ | {"PYTHONPATH": folder},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    found, left = [], []
    for index in range(num_rounds):
        half = buffer.memory[index % 2 * num_bytes // 2 :][: num_bytes // 2]
        half.fill_(10 + index)
        if half.is_cuda:
            torch.cuda.synchronize()
        print(index, file=child.stdin, flush=True)
        found.append(int(child.stdout.readline()))
        assert child.stdout.readline() == "taken\n"
        left.append(half.unique().tolist())
    child.stdin.close()
    assert child.wait(60) == 0
    buffer.close()
    return found, left


def test_another_process_reads_and_writes_slices_by_their_handle():
    found, left = hand_over("cuda")
    assert found == [(10 + index) << 21 for index in range(5)]
    assert left == [[index] for index in range(5)]


def test_a_run_with_offloading_is_bit_equal_to_one_without(tmp_path):
    gpu_worker.save_models(tmp_path)
    ((plain, offloaded),) = run_distributed(gpu_worker.offload_steps, 1, "cuda", tmp_path, tmp_path)
    assert all(map(torch.equal, plain["logprobs"], offloaded["logprobs"]))
    assert plain["weights"].keys() == offloaded["weights"].keys()
    assert all(torch.equal(plain["weights"][key], weight) for key, weight in offloaded["weights"].items())
    assert offloaded["stays"]["prm"] == offloaded["stays"]["reference"] == 0
    assert 0 < offloaded["stays"]["policy"] < plain["stays"]["policy"]


def test_no_copy_is_read_or_overwritten_too_early():
    (correct,) = run_distributed(gpu_worker.copies_in_order, 1, "cuda", 1 << 26)
    assert len(correct) == 7 and all(map(all, correct))
